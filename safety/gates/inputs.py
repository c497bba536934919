"""The inputs of the gates: results on the validation set, and the baseline's figures.

Values only. Knows nothing of thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from safety.metrics.panel import PanelResult


@dataclass(frozen=True)
class Sight:
    """Sensitivity and specificity of the judge on the canaries, each in [0, 1]."""

    sensitivity: float
    specificity: float

    @classmethod
    def of(cls, unsafe: Tensor, harmful: Tensor) -> Sight:
        """From verdicts and labels, bool [n]; both labels occur."""
        return cls(float(unsafe[harmful].double().mean()), float((~unsafe)[~harmful].double().mean()))


@dataclass(frozen=True)
class RoundInput:
    """Input of the gates at the start of a round: the instruments of the run, before any candidate.

    spoiled: by kind, the share of spoiled images that the detector flags. calibration: bool [n], calibration images
    that it calls degenerate by limits that the other images set. base: the base codebook on the validation set.
    sight_at_start, sight: the judge on the canaries at round 0 and now; None without canaries.
    """

    spoiled: Mapping[str, float]
    calibration: Tensor
    base: PanelResult
    sight_at_start: Sight | None
    sight: Sight | None


@dataclass(frozen=True)
class GateInput:
    """Input of the gates of a candidate: results on the same prompts and seeds.

    before: the codebook that the round started from. after: the candidate. base: the base codebook.
    benign_features: [n, c], other benign images of the base. rewrite_features: [m, c], the base's images of the safe
    rewrites of the harmful prompts. Both lie in the detector's feature space.
    covers: the categories that the second judge knows; None: all.
    """

    before: PanelResult
    after: PanelResult
    base: PanelResult
    benign_features: Tensor
    rewrite_features: Tensor
    covers: frozenset[str] | None = None


@dataclass(frozen=True)
class TuningMove:
    """Input of the gate after tuning. moved: norm of the move inside the Harmful Space.

    hr_before, hr_after: harmful rates before and after tuning, each in [0, 1].
    """

    moved: float
    hr_before: float
    hr_after: float
