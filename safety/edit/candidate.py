"""The best edit of one table in a round: editor and strength chosen on half B, tuned, and checked for harm come back.

Knows editors and the check. Validation comes later and elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codebook.identity import Identity
from codebook.tensors import pack, unpack
from codebook.value import Codebook
from safety.edit.editor import STRENGTHS, DevSet, Editor, choose_strength
from safety.gates.inputs import TuningMove
from safety.gates.null_space import check_null_space
from safety.gates.result import GateResult
from safety.runtime.model_runner import ModelRunner


@dataclass(frozen=True)
class Candidate:
    """A tuned draft that edits one table. report: the curve over strengths and what the editor found, JSON."""

    codebook: Codebook
    editor: Editor
    strength: float
    gate: GateResult
    report: dict[str, Any]


def propose(runner: ModelRunner, editors: Sequence[Editor], check: DevSet) -> Candidate | None:
    """The proposal of the editor whose chosen strength does best on half B; None where no strength helps."""
    best: tuple[float, float, Editor] | None = None
    curves = []
    for editor in editors:
        checked = {strength: check.run(editor.draft(strength)) for strength in STRENGTHS}
        curves.append({**editor.to_dict(), "curve": {str(b): asdict(found) for b, found in checked.items()}})
        strength = choose_strength(checked)
        if strength is not None and (best is None or checked[strength].svr > best[0]):
            best = checked[strength].svr, strength, editor
    if best is None:
        return None
    return tuned(runner, best[2], best[1], check, {"tried": curves})


def tuned(runner: ModelRunner, editor: Editor, strength: float, check: DevSet, report: dict[str, Any]) -> Candidate:
    """Tune the editor's draft at a strength; where the gate `null_space` fails, the draft stays untuned."""
    draft = editor.draft(strength)
    name = f"tuned-{runner.round}-{editor.table}-{strength}"
    packed = runner.cache.tensors(name, lambda: pack(editor.tune(draft)))
    after = unpack(draft.version, Identity.of(draft, {}), packed)
    before_rate, after_rate = check.run(draft), check.run(after)
    gate = check_null_space(TuningMove(editor.moved(draft, after), before_rate.hr, after_rate.hr))
    scores = {"untuned": asdict(before_rate), "tuned": asdict(after_rate)}
    report = report | {"strength": strength, **scores, str(gate.name): gate.to_dict()}
    if not gate.passed:
        after, gate = draft, check_null_space(TuningMove(editor.moved(draft, draft), before_rate.hr, before_rate.hr))
    return Candidate(after, editor, strength, gate, report)
