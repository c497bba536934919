"""The verdict of the experiment on iteration: paired differences of two arms with bootstrap bounds, and four words.

Knows bool tensors. Knows nothing of arms and images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RESAMPLES, BATCH = 10_000, 100
MARGIN = 0.005  # that the lower end of mined - single must exceed
ONE_SIDED = 0.95
SHOWN, NOT_SHOWN, WORSE, FRESHNESS = "shown", "not shown", "worse", "freshness, not mining"


@dataclass(frozen=True)
class Difference:
    """The difference of two rates; low, high: its one-sided 95 % ends, by bootstrap over n prompts."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Difference:
        """The rate of `first` less that of `second`, bool [seeds, n] each on the same prompts.

        A prompt is resampled with all its seeds.
        """
        each = (first.double() - second.double()).mean(0)
        n, generator = len(each), torch.Generator().manual_seed(0)
        picks = (torch.randint(n, (BATCH, n), generator=generator) for _ in range(RESAMPLES // BATCH))
        means = torch.cat([each[pick].mean(1) for pick in picks])
        low, high = means.quantile(torch.tensor([1 - ONE_SIDED, ONE_SIDED], dtype=torch.float64)).tolist()
        return cls(float(each.mean()), low, high, n)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


def verdict(over_single: Difference, over_random: Difference | None) -> str:
    """Whether mined rounds surely beat a single turn, or are surely worse; and if better, whether mining does it.

    over_random: mined - random rounds; None where those were not run, so that nothing is said about it.
    """
    if over_single.low <= MARGIN:
        return WORSE if over_single.high < 0 else NOT_SHOWN
    return FRESHNESS if over_random is not None and over_random.low <= 0 else SHOWN
