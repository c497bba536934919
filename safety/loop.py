"""The loop: generate, judge, pair, find the space, edit, tune, validate, accept; round after round.

Reads as the method does; each phase lives in a file of its own. All results are kept in the run's folder, so that a run
that was killed and is called again goes on to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from safety.edit.candidate import Candidate, propose, tuned
from safety.edit.editor import DevSet
from safety.edit.head_editor import HeadEditor
from safety.metrics.charts import rounds_png
from safety.outcome import RoundResult
from safety.reason import Reason
from safety.report import figures, pictures, point, provenance
from safety.request import ImproveRequest
from safety.rounds import LoopState, prepare
from safety.runtime.progress import Cancelled, Progress
from safety.runtime.run_context import RunContext
from safety.stopping import stop_reason
from safety.validation import ScoredCandidate, Validation

__all__ = ["Cancelled", "ImproveRequest", "Progress", "RoundResult", "improve"]

HALVINGS = 2


def improve(context: RunContext, start: Codebook) -> Iterator[RoundResult]:
    """Improve the codebook `start`, yielding the result of each round; the best is the last accepted one.

    Called again after a crash in a context of the same arguments, it yields the same rounds and computes only what the
    context's folder lacks. Raises whatever the context's progress raises (Cancelled).
    """
    if context.preflight.fault is not None:
        yield _refused(context)
        return
    state = LoopState.of(context, start)
    reasons: list[Reason] = []
    curve: list[dict[str, Any]] = []
    for number in count(1):
        context.runner.round = number
        validation = Validation(context)
        result, state = improve_once(context, state, validation)
        reasons.append(result.reason)
        curve.append(point(number, result.accepted, validation.result(state.codebook), result.report))
        stop = stop_reason(reasons, state.full, context.max_rounds)
        report = {**result.report, "rounds": [*curve], "stop": stop}
        images = {**result.images, "rounds.png": rounds_png(curve)} if number > 1 else result.images
        yield replace(result, stop=stop, report=report, images=images)
        if stop is not None:
            return


def _refused(context: RunContext) -> RoundResult:
    """The result of a run whose preflight failed: nothing was tried."""
    reason, ready = Reason.PREFLIGHT, context.preflight
    report = {"preflight": ready.to_dict(), "self_judged": list(context.facts.self_judged), "stop": reason}
    return RoundResult(1, False, reason, None, {}, {}, report, stop=reason, run=context.facts, fault=ready.fault)


def improve_once(context: RunContext, state: LoopState, validation: Validation) -> tuple[RoundResult, LoopState]:
    """One round: its result, and the state after it."""
    report = provenance(context, state.codebook)
    broken = next((gate.name for gate in validation.state if gate.failed), None)
    if broken is not None:
        return _conclude(context, state, validation, None, Reason.of_gate(broken), report)
    prepared = prepare(context, state)
    state, report = prepared.state, report | prepared.report
    if prepared.round_data is None:
        return _conclude(context, state, validation, None, prepared.failed or Reason.NO_PAIRS, report)
    dev_set = DevSet(context.runner, prepared.round_data, prepared.fresh, context.baseline.validity, context.second)
    editors = prepared.editors
    proposals = (propose(context.runner, editors[table], dev_set) for table in editors)
    candidates = [candidate for candidate in proposals if candidate is not None]
    report["found"] = {candidate.editor.table: candidate.report for candidate in candidates}
    if not candidates:
        return _conclude(context, state, validation, None, Reason.GAIN, report)
    validation = validation.confirmed_by(prepared.confirmation)
    best = validate(context, state, validation, candidates, dev_set, report)
    result, moved = _conclude(context, state, validation, best, best.decision.reason, report)
    charts = {name: png for table in editors.values() for e in table[:1] for name, png in e.pictures().items()}
    return replace(result, images={**result.images, **charts}), moved


def validate(
    context: RunContext,
    state: LoopState,
    validation: Validation,
    candidates: Sequence[Candidate],
    dev_set: DevSet,
    report: dict[str, Any],
) -> ScoredCandidate:
    """The best candidate; while a gate turns it down, the same at half the strength, at most HALVINGS times.

    A candidate that gains too little is not halved: less of it gains less. In a mined round fresh prompts say what it
    gains, once no gate turns it down.
    """
    ranked = validation.rank(state.codebook, candidates)
    report["tried"] = [scored.to_dict() for scored in ranked]
    for _ in range(HALVINGS):
        decision = ranked[0].decision
        too_little = decision.gain < decision.needed and not validation.confirms
        if too_little or not decision.reason.is_gate:
            break
        candidates = [tuned(context.runner, c.editor, c.strength / 2, dev_set, c.report) for c in candidates]
        ranked = validation.rank(state.codebook, candidates)
        report["tried"] += [scored.to_dict() for scored in ranked]
    return ranked[0]


def _conclude(
    context: RunContext,
    state: LoopState,
    validation: Validation,
    best: ScoredCandidate | None,
    reason: Reason,
    report: dict[str, Any],
) -> tuple[RoundResult, LoopState]:
    """The round's result, and the state after it: that of the accepted candidate, or the same."""
    before = validation.result(state.codebook)
    after = before if best is None else best.result
    gates = {str(gate.name): gate.to_dict() for gate in (validation.state if best is None else best.gates)}
    accepted = best is not None and best.decision.accepted
    codebook = best.codebook if best is not None and accepted else None
    rates = figures(before, after)
    images = {} if best is None else pictures(context.runner, state.codebook, best, rates)
    after_hash = None if best is None else codebook_hash(best.codebook)
    report = {**report, "codebook_after": after_hash, "gates": gates}
    number, run = context.runner.round, context.facts
    failing = report.get("mined", {}).get("even")
    decision = None if best is None else best.to_dict()
    result = RoundResult(
        number, accepted, reason, codebook, rates, gates, report, images, run=run, failing=failing, decision=decision
    )
    return result, state if codebook is None or best is None else _moved(state, codebook, best.candidates)


def _moved(state: LoopState, codebook: Codebook, candidates: Sequence[Candidate]) -> LoopState:
    spaces, lesson = dict(state.spaces), state.lesson
    for candidate in candidates:
        spaces[candidate.editor.table] = candidate.editor.spaces
        if isinstance(candidate.editor, HeadEditor):
            lesson = replace(lesson, concepts=tuple(candidate.editor.concepts))
    full = all(candidate.editor.full for candidate in candidates) and len(candidates) == len(spaces)
    return replace(state, codebook=codebook, spaces=spaces, full=full, lesson=lesson)
