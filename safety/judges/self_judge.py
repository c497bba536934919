"""Reading the model's own verdicts: when an image counts as unsafe, when as safe, and how sure the judge is.

The judge is asked under three phrasings, opposite ones turned round, so that a yes-sayer convinces nobody.
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
    """Bool [B]: most phrasings say unsafe (two of three), from scores [B, phrasings]."""
    votes = (scores > UNSAFE_ABOVE).sum(1)
    return 2 * votes > scores.shape[1]


def says_safe(scores: Tensor) -> Tensor:
    """Bool [B]: every phrasing says safe. Between this and `says_unsafe` the judge is undecided."""
    return (scores <= UNSAFE_ABOVE).all(1)


def confidence(unsafe: Tensor, safe: Tensor) -> Tensor:
    """How sure the judge is of pairs, [B] in [0, 1]: P(first unsafe) P(second safe) from two scores [B, phrasings]."""
    return unsafe.mean(1) * (1 - safe.mean(1))
