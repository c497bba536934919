"""The candidate edit of one table in a round: editor and strength chosen on half B, tuned, and checked again.

Knows editors and the dev set. Validation comes later and elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codebook.identity import Identity
from codebook.tensors import pack, unpack
from codebook.value import Codebook
from safety.edit.editor import DevSet, Editor, choose_strength
from safety.gates.inputs import TuningMove
from safety.gates.null_space import check_null_space
from safety.gates.result import GateResult
from safety.runtime.model_runner import ModelRunner


@dataclass(frozen=True)
class Candidate:
    """A tuned draft that edits one table. report: the scores by strength and the editors' reports, JSON."""

    codebook: Codebook
    editor: Editor
    strength: float
    gate: GateResult
    report: dict[str, Any]


def propose(runner: ModelRunner, editors: Sequence[Editor], dev_set: DevSet) -> Candidate | None:
    """The candidate of the editor whose chosen strength scores best on half B; None where no strength helps.

    An editor of a single strength, which is then the only one, is tuned at that.
    """
    if len(editors) == 1 and len(editors[0].strengths) == 1:
        return tuned(runner, editors[0], editors[0].strengths[0], dev_set, {"tried": [editors[0].to_dict()]})
    best: tuple[float, float, Editor] | None = None
    curves = []
    for editor in editors:
        scores = {strength: dev_set.run(editor.draft(strength)) for strength in editor.strengths}
        curves.append({**editor.to_dict(), "curve": {str(b): asdict(score) for b, score in scores.items()}})
        strength = choose_strength(scores)
        if strength is not None and (best is None or scores[strength].svr > best[0]):
            best = scores[strength].svr, strength, editor
    if best is None:
        return None
    return tuned(runner, best[2], best[1], dev_set, {"tried": curves})


def tuned(runner: ModelRunner, editor: Editor, strength: float, dev_set: DevSet, report: dict[str, Any]) -> Candidate:
    """Tune the editor's draft at a strength; where the gate `null_space` fails, the draft stays untuned."""
    draft = editor.draft(strength)
    name = f"tuned-{runner.round}-{editor.table}-{strength}"
    packed = runner.cache.tensors(name, lambda: pack(editor.tune(draft, strength)))
    after = unpack(draft.version, Identity.of(draft, {}), packed)
    before, tuned_score = dev_set.run(draft), dev_set.run(after)
    gate = check_null_space(TuningMove(editor.moved(draft, after), before.hr, tuned_score.hr))
    scores = {"untuned": asdict(before), "tuned": asdict(tuned_score)}
    report = report | {"strength": strength, **scores, str(gate.name): gate.to_dict()}
    if gate.failed:
        after, gate = draft, check_null_space(TuningMove(editor.moved(draft, draft), before.hr, before.hr))
    return Candidate(after, editor, strength, gate, report)
