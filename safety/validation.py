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
from safety.metrics.trial import PanelResult, evaluate_panel
from safety.runtime.baseline import look
from safety.runtime.run_context import RunContext

MOST_TABLES = 2


@dataclass(frozen=True)
class ScoredCandidate:
    """One candidate with its trial, its gates and the decision on it."""

    codebook: Codebook
    proposals: tuple[Candidate, ...]
    trial: PanelResult
    gates: tuple[GateResult, ...]
    decision: Decision

    def order(self) -> tuple[bool, int]:
        """What candidates are ranked by: accepted or not, then how many images are safe and valid."""
        return self.decision.accepted, self.trial.rates().safe_valid.count

    def to_dict(self) -> dict[str, Any]:
        """The candidate as JSON."""
        tables = [proposal.editor.table for proposal in self.proposals]
        strengths = {proposal.editor.table: proposal.strength for proposal in self.proposals}
        return {
            "tables": tables,
            "strengths": strengths,
            "rates": self.trial.rates().to_dict(),
            **self.decision.to_dict(),
        }


class Validation:
    """Tries codebooks on one panel, against the codebook `start` and the model's own."""

    def __init__(self, setting: RunContext, second: Examiner) -> None:
        """Look at the canaries anew, and hold the gates that do not depend on a candidate: `standing`."""
        self._studio, self._panel, self._baseline = setting.studio, setting.panel, setting.baseline
        self.second = second
        sight = look(self._studio, self._baseline.canaries, self._baseline.harmful)
        fixtures = g1_fixtures(self._baseline.spoiled, self._baseline.void, self.trial(self._studio.base))
        self._rewrites = self._studio.keep.tensors("rewrites", self._draw_rewrites)["features"]
        self.standing = (fixtures, g2_canaries(self._baseline.sight, sight), setting.hygiene)

    def _draw_rewrites(self) -> dict[str, Tensor]:
        """Features of what the model's own codebook draws for the rewrites of the harmful prompts, same seeds."""
        studio, panel = self._studio, self._panel
        rows: list[int] = panel.harmful.nonzero().flatten().tolist()
        texts, seeds = [panel.prompts[i].safe for i in rows], [panel.seeds[i] for i in rows]
        tokens = studio.draw("rewrites", texts, seeds, studio.base).tokens
        return {"features": self._baseline.validity.features(studio.decode(tokens, studio.base))}

    def trial(self, codebook: Codebook) -> PanelResult:
        """Try one codebook."""
        return evaluate_panel(self._studio, self._panel, codebook, self._baseline.validity, self.second)

    def rank(self, start: Codebook, proposals: Sequence[Candidate]) -> list[ScoredCandidate]:
        """Try the candidates that `proposals` (at least one) allow: accepted ones first, then by SVR."""
        sets = [(proposal,) for proposal in proposals]
        together = [tuple(proposals)] if len(proposals) == MOST_TABLES else []
        tried = [self._try(start, chosen) for chosen in [*sets, *together]]
        return sorted(tried, key=ScoredCandidate.order, reverse=True)

    def _try(self, start: Codebook, proposals: tuple[Candidate, ...]) -> ScoredCandidate:
        candidate = combine(start, proposals)
        before, after = self.trial(start), self.trial(candidate)
        gates = self.gates(before, after, proposals)
        return ScoredCandidate(candidate, proposals, after, gates, decide(before, after, gates))

    def gates(self, before: PanelResult, after: PanelResult, proposals: Sequence[Candidate]) -> tuple[GateResult, ...]:
        """All gates, in order: a gate of the run, of the candidate, of its tuning."""
        own = self.trial(self._studio.base)
        here = (
            g1_validity(before, after),
            g3_second_judge(before, after),
            g4_neighbours(own, after),
            g5_quality(own, after, self._baseline.validity.known),
            g6_recovery(own, after),
            g8_diversity(own, after, self._rewrites),
            g10_languages(own, after),
        )
        return (*self.standing, *here, *(proposal.gate for proposal in proposals))


def combine(start: Codebook, proposals: Sequence[Candidate]) -> Codebook:
    """The start with the table of each proposal."""
    codebook = replace(start, version="draft")
    for proposal in proposals:
        table = proposal.editor.table
        codebook = replace(codebook, **{table: getattr(proposal.codebook, table)})
    return codebook
