"""Validation of candidates: each table's edit alone and both together, through every gate, ranked.

A table whose edit does not help stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from codebook.value import Codebook
from safety.acceptance import Decision, decide
from safety.confirmation import Confirmation, Confirmed
from safety.edit.candidate import Candidate
from safety.gates import GATES, ROUND_GATES
from safety.gates.inputs import GateInput, RoundInput
from safety.gates.result import GateResult
from safety.metrics.panel import PanelResult, evaluate_panel
from safety.runtime.baseline import judge_canaries
from safety.runtime.run_context import RunContext

MOST_TABLES = 2


@dataclass(frozen=True)
class ScoredCandidate:
    """One candidate with its result, its gates and the decision on it."""

    codebook: Codebook
    candidates: tuple[Candidate, ...]
    result: PanelResult
    gates: tuple[GateResult, ...]
    decision: Decision
    confirmed: Confirmed | None = None

    def order(self) -> tuple[bool, int]:
        """The rank of a candidate: accepted or not, then the number of safe and valid images."""
        return self.decision.accepted, self.result.rates().safe_valid.count

    def to_dict(self) -> dict[str, Any]:
        """The candidate as JSON."""
        tables = [candidate.editor.table for candidate in self.candidates]
        strengths = {candidate.editor.table: candidate.strength for candidate in self.candidates}
        return {
            "tables": tables,
            "strengths": strengths,
            "rates": self.result.rates().to_dict(),
            **self.decision.to_dict(),
            **({} if self.confirmed is None else {"confirmed": self.confirmed.to_dict()}),
        }


class Validation:
    """Scores codebooks on one validation set, against the round's start and the base codebook."""

    def __init__(self, context: RunContext) -> None:
        """Judge the canaries anew, and the gates that do not depend on a candidate: `state`."""
        self._runner, self._panel, self._baseline = context.runner, context.prompts.validation, context.baseline
        self._instruments, baseline = context.instruments, context.baseline
        self._confirmation: Confirmation | None = None
        sight = None
        if baseline.sight is not None:
            sight = judge_canaries(self._runner, baseline.canaries, baseline.harmful)
        base = self.result(self._runner.base)
        inputs = RoundInput(baseline.spoiled, baseline.degenerate, base, baseline.sight, sight)
        self._rewrites = self._runner.cache.tensors("rewrites", self._draw_rewrites)["features"]
        self.state = (*(gate(inputs) for gate in ROUND_GATES), context.prompts.hygiene)

    def _draw_rewrites(self) -> dict[str, Tensor]:
        """Features of the base codebook's images of the harmful prompts' rewrites, with the same seeds."""
        runner, panel = self._runner, self._panel
        indices = [i for i in panel.harmful.nonzero().flatten().tolist() if panel.prompts[i].safe is not None]
        texts, seeds = [panel.prompts[i].rewrite for i in indices], [panel.seeds[i] for i in indices]
        tokens = runner.tokens("rewrites", texts, seeds, runner.base)
        return {"features": self._baseline.validity.features(runner.decode(tokens, runner.base))}

    def confirmed_by(self, confirmation: Confirmation | None) -> Validation:
        """The same, but that candidates are decided on by a confirmation too, if there is one."""
        other = copy(self)
        other._confirmation = confirmation
        return other

    @property
    def confirms(self) -> bool:
        """Whether fresh prompts decide on candidates that pass every gate."""
        return self._confirmation is not None

    def result(self, codebook: Codebook) -> PanelResult:
        """The result of one codebook."""
        return evaluate_panel(self._runner, self._panel, codebook, self._instruments)

    def rank(self, start: Codebook, candidates: Sequence[Candidate]) -> list[ScoredCandidate]:
        """Score the candidates (at least one), alone and together: accepted ones first, then by SVR."""
        sets = [(candidate,) for candidate in candidates]
        together = [tuple(candidates)] if len(candidates) == MOST_TABLES else []
        scored = [self._score(start, chosen) for chosen in [*sets, *together]]
        return sorted(scored, key=ScoredCandidate.order, reverse=True)

    def _score(self, start: Codebook, candidates: tuple[Candidate, ...]) -> ScoredCandidate:
        candidate = combine(start, candidates)
        before, after = self.result(start), self.result(candidate)
        gates = self.gates(before, after, candidates)
        confirmed = None
        if self._confirmation is not None and not any(gate.failed for gate in gates):
            confirmed = self._confirmation.run(start, candidate)
        decision = decide(before, after, gates, confirmed)
        return ScoredCandidate(candidate, candidates, after, gates, decision, confirmed)

    def gates(self, before: PanelResult, after: PanelResult, candidates: Sequence[Candidate]) -> tuple[GateResult, ...]:
        """All gates, in order: of the round, of the candidate, of its tuning."""
        base = self.result(self._runner.base)
        covers = self._instruments.second.covers
        inputs = GateInput(before, after, base, self._baseline.validity.known, self._rewrites, covers)
        return (*self.state, *(gate(inputs) for gate in GATES), *(candidate.gate for candidate in candidates))


def combine(start: Codebook, candidates: Sequence[Candidate]) -> Codebook:
    """The start with the table of each candidate."""
    codebook = replace(start, version="draft")
    for candidate in candidates:
        table = candidate.editor.table
        codebook = replace(codebook, **{table: getattr(candidate.codebook, table)})
    return codebook
