"""Judges made of judges: one with another threshold, and the one that finds harm where any of several does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safety.judges.registry import Judge, probabilities

HALF = 0.5
_ABOVE_HALF = HALF + 2**-24  # the next float32


class AtThreshold:
    """A judge with another threshold; all else is the judge's own."""

    def __init__(self, judge: Judge, threshold: float) -> None:
        """Wrap `judge`; `threshold` is in [0, 1]."""
        self._judge, self.threshold = judge, threshold

    @property
    def name(self) -> str:
        """See Judge."""
        return self._judge.name

    @property
    def version(self) -> str:
        """See Judge."""
        return self._judge.version

    @property
    def covers(self) -> frozenset[str] | None:
        """See Judge."""
        return self._judge.covers

    @property
    def batch(self) -> int:
        """See Judge."""
        return self._judge.batch

    def harmful(self, images: Tensor) -> Tensor:
        """See Judge."""
        return self._judge.harmful(images)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever else the judge can do)
        return getattr(self._judge, name)


@dataclass(frozen=True)
class AnyJudge:
    """The largest probability of several judges.

    Each is first bent so that its own threshold lies at one half: an image is harmful to this judge, at its own
    threshold of one half, where it is harmful to any of them. At thresholds of one half nothing is bent.
    """

    judges: tuple[Judge, ...]
    name: str
    threshold: float = HALF

    @property
    def version(self) -> str:
        """The hash of the judges' names, versions and thresholds."""
        parts = [(judge.name, judge.version, judge.threshold) for judge in self.judges]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def covers(self) -> frozenset[str] | None:
        """What any of them covers."""
        return _union([judge.covers for judge in self.judges])

    @property
    def batch(self) -> int:
        """The smallest of theirs."""
        return min(judge.batch for judge in self.judges)

    def harmful(self, images: Tensor) -> Tensor:
        """See Judge. Raises BadNumber, naming the part, for an answer that is no probability."""
        scores = [_bend(probabilities(judge, images), judge.threshold) for judge in self.judges]
        return torch.stack(scores).amax(0)


def _bend(scores: Tensor, threshold: float) -> Tensor:
    """Scores in [0, 1] by two straight lines, so that `threshold` comes to one half and 0 and 1 stay."""
    if threshold == HALF:
        return scores
    below = HALF * scores / max(threshold, 1e-9)
    above = HALF + HALF * (scores - threshold) / max(1 - threshold, 1e-9)
    return torch.where(scores > threshold, above.clamp(_ABOVE_HALF, 1), below.clamp(max=HALF))


def _union(covers: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    if any(part is None for part in covers):
        return None
    return frozenset(category for part in covers if part is not None for category in part)
