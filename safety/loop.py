"""The loop: generate, judge, pair, find the space, edit, tune, validate, accept; round after round.

Reads as the method does; each phase lives in a file of its own. Everything made is kept under `work`, so that a run
that was killed and is called again goes on to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from engine.model import ImageModel
from safety.collect.collection import collect
from safety.collect.pairs import Pair
from safety.collect.round_data import RoundData, enough, gather_round_data
from safety.config import LoopConfig
from safety.edit.candidate import Candidate, propose, tuned
from safety.edit.editor import DevSet, Editor
from safety.edit.head_editor import head_editors
from safety.edit.pixel_editor import pixel_editors
from safety.judges.registry import Examiner
from safety.outcome import RoundResult
from safety.policy.emoji.taxonomy import PATTERN
from safety.report import figures, pictures, provenance
from safety.request import ImproveRequest
from safety.runtime.executor import Executor, LocalExecutor
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.progress import Cancelled, Progress
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import RunContext, prepare
from safety.stopping import stop_reason
from safety.validation import ScoredCandidate, Validation

__all__ = ["Cancelled", "ImproveRequest", "LoopConfig", "Progress", "RoundResult", "improve"]

HALVINGS = 2


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands between rounds: the best codebook so far, all pairs, and the spaces removed.

    spaces: by table and name.
    """

    codebook: Codebook
    pairs: tuple[Pair, ...]
    spaces: dict[str, Mapping[str, Tensor]]
    full: bool = False


def improve(
    model: ImageModel,
    start: Codebook,
    request: ImproveRequest,
    work: Path,
    watch: Progress,
    second_judge: Examiner,
    config: LoopConfig | None = None,
    executor: Callable[[ResultCache], Executor] = LocalExecutor,
) -> Iterator[RoundResult]:
    """Improve the codebook `start`, yielding the outcome of each round; the best is the last accepted one.

    Called again after a crash with the same arguments, it yields the same rounds and makes only what `work` lacks.
    Raises BadInput for a request that cannot be met, and whatever the watcher raises (Cancelled).
    """
    config = config or LoopConfig()
    cache = ResultCache(work)
    runner = ModelRunner(model, cache, watch, config.batch, executor(cache))
    context = prepare(runner, request, config)
    state = LoopState(start, (), {"pixel": {}, "output": {}})
    reasons: list[str] = []
    for number in count(1):
        runner.round = number
        validation = Validation(context, second_judge)
        outcome, state = improve_once(context, state, validation)
        reasons.append(outcome.reason)
        harmful_rate = validation.result(state.codebook).rates().harmful.value
        stop = stop_reason(reasons, harmful_rate, state.full, request.max_rounds)
        yield replace(outcome, stop=stop, report={**outcome.report, "stop": stop})
        if stop is not None:
            return


def improve_once(context: RunContext, state: LoopState, validation: Validation) -> tuple[RoundResult, LoopState]:
    """One round: what came of it, and where the loop stands then."""
    report = provenance(context, state.codebook, validation.second)
    broken = next((gate.name for gate in validation.state if not gate.passed), None)
    if broken is not None:
        return _conclude(context, state, validation, None, f"gate:{broken}", report)
    collection = collect(context, state.codebook)
    state = replace(state, pairs=state.pairs + collection.pairs)
    report["pairs"] = collection.log
    round_data = make_round_data(context, state)
    if round_data is None:
        return _conclude(context, state, validation, None, "no_pairs", report)
    editors = find_edits(context, state, round_data)
    if not any(editors.values()):
        return _conclude(context, state, validation, None, "no_direction", report)
    check = DevSet(context.runner, round_data, len(collection.pairs), context.baseline.validity)
    found = (propose(context.runner, editors[table], check) for table in editors)
    candidates = [candidate for candidate in found if candidate is not None]
    report["found"] = {candidate.editor.table: candidate.report for candidate in candidates}
    if not candidates:
        return _conclude(context, state, validation, None, "gain", report)
    tried = validate(context, state, validation, candidates, check, report)
    outcome, moved = _conclude(context, state, validation, tried, tried.decision.reason, report)
    seen = {name: png for table in editors.values() for editor in table[:1] for name, png in editor.pictures().items()}
    return replace(outcome, images={**outcome.images, **seen}), moved


def find_edits(context: RunContext, state: LoopState, round_data: RoundData) -> dict[str, Sequence[Editor]]:
    """Editors for either table; none for a table where the pairs show no direction."""
    start, spaces = state.codebook, state.spaces
    patterns = [name for name in context.categories if context.taxonomy.level(name) == PATTERN]
    return {
        "pixel": pixel_editors(context.runner, start, round_data, patterns, spaces["pixel"]),
        "output": head_editors(context, start, round_data, spaces["output"]),
    }


def validate(
    context: RunContext,
    state: LoopState,
    validation: Validation,
    candidates: Sequence[Candidate],
    check: DevSet,
    report: dict[str, Any],
) -> ScoredCandidate:
    """The best candidate; while a gate turns it down, the same at half the strength, at most HALVINGS times.

    A candidate that gains too little is not halved: less of it gains less.
    """
    tried = validation.rank(state.codebook, candidates)
    report["tried"] = [found.to_dict() for found in tried]
    for _ in range(HALVINGS):
        decision = tried[0].decision
        if decision.gain < decision.needed or not decision.reason.startswith("gate:"):
            break
        candidates = [tuned(context.runner, p.editor, p.strength / 2, check, p.report) for p in candidates]
        tried = validation.rank(state.codebook, candidates)
        report["tried"] += [found.to_dict() for found in tried]
    return tried[0]


def make_round_data(context: RunContext, state: LoopState) -> RoundData | None:
    """What the round works with; None where no category has enough pairs."""
    pairs = enough(state.pairs, context.config.least_pairs)
    seed = derived_seed(context.seed, "round", context.runner.round)
    return gather_round_data(context.runner, context.baseline, pairs, context.config, seed) if pairs else None


def _conclude(
    context: RunContext,
    state: LoopState,
    validation: Validation,
    tried: ScoredCandidate | None,
    reason: str,
    report: dict[str, Any],
) -> tuple[RoundResult, LoopState]:
    """The outcome; an accepted candidate is where the loop stands from here on."""
    before = validation.result(state.codebook)
    after = before if tried is None else tried.result
    gates = validation.state if tried is None else tried.gates
    told = {gate.name: gate.to_dict() for gate in gates}
    accepted = tried is not None and tried.decision.accepted
    codebook = tried.codebook if tried is not None and accepted else None
    told_figures = figures(before, after)
    images = {} if tried is None else pictures(context.runner, state.codebook, tried, told_figures)
    after_hash = None if tried is None else codebook_hash(tried.codebook)
    report = {**report, "codebook_after": after_hash, "gates": told}
    outcome = RoundResult(context.runner.round, accepted, reason, codebook, told_figures, told, report, images)
    return outcome, state if codebook is None or tried is None else _moved(state, codebook, tried.candidates)


def _moved(state: LoopState, codebook: Codebook, candidates: Sequence[Candidate]) -> LoopState:
    spaces = dict(state.spaces)
    for candidate in candidates:
        spaces[candidate.editor.table] = candidate.editor.spaces
    full = all(candidate.editor.full for candidate in candidates) and len(candidates) == len(spaces)
    return LoopState(codebook, state.pairs, spaces, full)
