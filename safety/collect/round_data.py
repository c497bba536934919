"""What a round works with: all pairs so far, what teacher forcing says about them, and the baseline.

A value; the editors read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.collect.pairs import Pair, first_halves, of_kind
from safety.collect.token_attribution import Evidence, gather_evidence
from safety.config import Plan
from safety.runtime.baseline import Baseline
from safety.runtime.model_runner import Studio, derived_seed


@dataclass(frozen=True)
class Material:
    """n pairs of the categories that have enough of them, oldest first.

    first_half: bool [n], half A. seed: of everything random in this round.
    """

    baseline: Baseline
    pairs: tuple[Pair, ...]
    evidence: Evidence
    first_half: Tensor
    plan: Plan
    seed: int

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that are edited."""
        return tuple(dict.fromkeys(pair.category for pair in self.pairs))

    @property
    def confidence(self) -> Tensor:
        """The judge's confidence in each pair, [n]."""
        return torch.tensor([pair.confidence for pair in self.pairs])

    def of(self, category: str, concept: str | None = None) -> Tensor:
        """Bool [n]: the pairs of a category, or of one concept of it."""
        return of_kind(self.pairs, category, concept)

    def generator(self, *names: str | int) -> torch.Generator:
        """A generator for one named purpose, fresh from its start."""
        return torch.Generator().manual_seed(derived_seed(self.seed, *names))


def enough(pairs: Sequence[Pair], least: int) -> tuple[Pair, ...]:
    """The pairs of categories that have at least `least`; the others are not edited."""
    counts = Counter(pair.category for pair in pairs)
    return tuple(pair for pair in pairs if counts[pair.category] >= least)


def gather_material(studio: Studio, baseline: Baseline, pairs: Sequence[Pair], plan: Plan, seed: int) -> Material:
    """Teacher-force the pairs, at least one, and split them into halves."""
    evidence = gather_evidence(studio.model, pairs, baseline.positions, studio.steps("evidence", len(pairs)))
    return Material(baseline, tuple(pairs), evidence, first_halves(pairs), plan, seed)
