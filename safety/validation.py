"""Candidates on the validation panel: each proposal alone and all together, through every gate, and the best of them.

A table whose edit does not help stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from codebook.value import Codebook
from safety.acceptance import Decision, decide
from safety.edit.candidate import Candidate
from safety.gates.canaries import g2_canaries
from safety.gates.diversity import g8_diversity
from safety.gates.languages import g10_languages
from safety.gates.look_alikes import g4_neighbours
from safety.gates.quality import g5_quality
from safety.gates.recovery import g6_recovery
from safety.gates.result import GateResult
from safety.gates.second_judge import g3_second_judge
from safety.gates.validity import g1_fixtures, g1_validity
from safety.judges.registry import Examiner
from safety.metrics.panel import PanelResult, evaluate_panel
from safety.runtime.baseline import look
from safety.runtime.run_context import RunContext

MOST_TABLES = 2


@dataclass(frozen=True)
class ScoredCandidate:
    """One candidate with its trial, its gates and the decision on it."""

    codebook: Codebook
    candidates: tuple[Candidate, ...]
    result: PanelResult
    gates: tuple[GateResult, ...]
    decision: Decision

    def order(self) -> tuple[bool, int]:
        """What candidates are ranked by: accepted or not, then how many images are safe and valid."""
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
        }


class Validation:
    """Tries codebooks on one panel, against the codebook `start` and the model's own."""

    def __init__(self, context: RunContext, second: Examiner) -> None:
        """Look at the canaries anew, and hold the gates that do not depend on a candidate: `state`."""
        self._runner, self._panel, self._baseline = context.runner, context.panel, context.baseline
        self.second = second
        sight = look(self._runner, self._baseline.canaries, self._baseline.harmful)
        fixtures = g1_fixtures(self._baseline.spoiled, self._baseline.degenerate, self.result(self._runner.base))
        self._rewrites = self._runner.cache.tensors("rewrites", self._draw_rewrites)["features"]
        self.state = (fixtures, g2_canaries(self._baseline.sight, sight), context.hygiene)

    def _draw_rewrites(self) -> dict[str, Tensor]:
        """Features of what the model's own codebook draws for the rewrites of the harmful prompts, same seeds."""
        runner, panel = self._runner, self._panel
        rows = [i for i in panel.harmful.nonzero().flatten().tolist() if panel.prompts[i].safe is not None]
        texts, seeds = [panel.prompts[i].rewrite for i in rows], [panel.seeds[i] for i in rows]
        tokens = runner.draw("rewrites", texts, seeds, runner.base).tokens
        return {"features": self._baseline.validity.features(runner.decode(tokens, runner.base))}

    def result(self, codebook: Codebook) -> PanelResult:
        """Try one codebook."""
        return evaluate_panel(self._runner, self._panel, codebook, self._baseline.validity, self.second)

    def rank(self, start: Codebook, candidates: Sequence[Candidate]) -> list[ScoredCandidate]:
        """Try the candidates that `candidates` (at least one) allow: accepted ones first, then by SVR."""
        sets = [(candidate,) for candidate in candidates]
        together = [tuple(candidates)] if len(candidates) == MOST_TABLES else []
        tried = [self._try(start, chosen) for chosen in [*sets, *together]]
        return sorted(tried, key=ScoredCandidate.order, reverse=True)

    def _try(self, start: Codebook, candidates: tuple[Candidate, ...]) -> ScoredCandidate:
        candidate = combine(start, candidates)
        before, after = self.result(start), self.result(candidate)
        gates = self.gates(before, after, candidates)
        return ScoredCandidate(candidate, candidates, after, gates, decide(before, after, gates))

    def gates(self, before: PanelResult, after: PanelResult, candidates: Sequence[Candidate]) -> tuple[GateResult, ...]:
        """All gates, in order: a gate of the run, of the candidate, of its tuning."""
        own = self.result(self._runner.base)
        here = (
            g1_validity(before, after),
            g3_second_judge(before, after),
            g4_neighbours(own, after),
            g5_quality(own, after, self._baseline.validity.known),
            g6_recovery(own, after),
            g8_diversity(own, after, self._rewrites),
            g10_languages(own, after),
        )
        return (*self.state, *here, *(candidate.gate for candidate in candidates))


def combine(start: Codebook, candidates: Sequence[Candidate]) -> Codebook:
    """The start with the table of each proposal."""
    codebook = replace(start, version="draft")
    for candidate in candidates:
        table = candidate.editor.table
        codebook = replace(codebook, **{table: getattr(candidate.codebook, table)})
    return codebook
