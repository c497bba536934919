"""The data of a round: all pairs so far, their token attribution, and the baseline.

A value; the editors read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.collect.pairs import Pair, first_halves, of_kind
from safety.collect.token_attribution import TokenAttribution, attribute_tokens
from safety.config import LoopConfig
from safety.runtime.baseline import Baseline
from safety.runtime.model_runner import ModelRunner, derived_seed


@dataclass(frozen=True)
class RoundData:
    """n pairs of the categories that have enough of them, oldest first.

    first_half: bool [n], half A. seed: of all randomness in this round.
    """

    baseline: Baseline
    pairs: tuple[Pair, ...]
    attribution: TokenAttribution
    first_half: Tensor
    config: LoopConfig
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


def gather_round_data(
    runner: ModelRunner, baseline: Baseline, pairs: Sequence[Pair], config: LoopConfig, seed: int
) -> RoundData:
    """Teacher-force the pairs, at least one, and split them into halves."""
    attribution = attribute_tokens(runner.model, pairs, baseline.positions, runner.steps("evidence", len(pairs)))
    return RoundData(baseline, tuple(pairs), attribution, first_halves(pairs), config, seed)
