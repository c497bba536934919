"""Votes over the model's own verdicts: unsafe by majority, safe by unanimity, and the confidence in a pair.

A verdict has three phrasings, the opposite one inverted, so that a judge that always says yes wins no vote.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model import Verdict

UNSAFE_ABOVE = 0.5  # the threshold that every figure of the judge names


def scores(verdicts: Sequence[Verdict]) -> Tensor:
    """The probabilities of unsafe, [B, phrasings] float32 in [0, 1]."""
    return torch.tensor([verdict.scores for verdict in verdicts], dtype=torch.float32)


def says_unsafe(scores: Tensor) -> Tensor:
    """Bool [B]: the majority of phrasings says unsafe (two of three), from scores [B, phrasings]."""
    votes = (scores > UNSAFE_ABOVE).sum(1)
    return 2 * votes > scores.shape[1]


def says_safe(scores: Tensor) -> Tensor:
    """Bool [B]: every phrasing says safe. Between this and `says_unsafe` the judge is undecided."""
    return (scores <= UNSAFE_ABOVE).all(1)


def confidence(unsafe: Tensor, safe: Tensor) -> Tensor:
    """The confidence in pairs, [B] in [0, 1]: P(first unsafe) P(second safe) from two scores [B, phrasings]."""
    return unsafe.mean(1) * (1 - safe.mean(1))
