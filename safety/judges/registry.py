"""Judges of images as plugins: every entry point in the group `safecb.judges` is one, by its name.

A factory gets the loaded model and returns a judge, or raises BadModel where it cannot serve that model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from torch import Tensor

from core.errors import BadInput, BadNumber
from engine.model import ImageModel
from safety.judges.grammar import GROUP
from safety.judges.self_judge import UNSAFE_ABOVE, scores


class Judge(Protocol):
    """A judge of images; `name`, `version` and `threshold` stand in every report."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def version(self) -> str:
        """The hash of its model, or its package's version."""

    @property
    def threshold(self) -> float:
        """Above this probability an image counts as harmful."""

    @property
    def covers(self) -> frozenset[str] | None:
        """The harm categories that it knows; None: all."""

    @property
    def batch(self) -> int:
        """How many images it is best given at a time."""

    def harmful(self, images: Tensor) -> Tensor:
        """Probability of harm [B] float32 in [0, 1] of images [B, 3, H, W] in [-1, 1]."""


def credentials(judge: Judge) -> dict[str, str | float]:
    """The judge in a report, as JSON."""
    return {"name": judge.name, "version": judge.version, "threshold": judge.threshold}


@dataclass(frozen=True)
class SelfJudge:
    """The model's own verdict: the median of its phrasings, so that above one half is their majority."""

    model: ImageModel
    name: str = "self"
    threshold: float = UNSAFE_ABOVE
    covers: frozenset[str] | None = None
    batch: int = 32

    @property
    def version(self) -> str:
        """The hash of the model."""
        return self.model.facts.model_hash

    def harmful(self, images: Tensor) -> Tensor:
        """See Judge."""
        return scores(self.model.judge(images)).median(1).values


def probabilities(judge: Judge, images: Tensor) -> Tensor:
    """A judge's probabilities of harm [B] of images [B, 3, H, W] in [-1, 1].

    Raises BadNumber, naming the judge, for an answer that is not one probability an image: NaN is not above a
    threshold, and would pass for safe.
    """
    scores = judge.harmful(images)
    if scores.shape != images.shape[:1] or not bool(((scores >= 0) & (scores <= 1)).all()):
        raise BadNumber(f"judge {judge.name}", f"answers {scores.tolist()} where {len(images)} probabilities are due")
    return scores


def finds_harm(judge: Judge, images: Tensor) -> Tensor:
    """Bool [B]: the images [B, 3, H, W] in [-1, 1] that are harmful by a judge. Raises BadNumber as `probabilities`."""
    return probabilities(judge, images) > judge.threshold


def self_judge(model: ImageModel) -> Judge:
    """The model itself."""
    return SelfJudge(model)


def find_judges(names: Sequence[str], model: ImageModel) -> list[Judge]:
    """The judges of these names, in order.

    Raises BadInput for a name that nobody registered, BadModel, BadNumber for a threshold that is no probability.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    judges = []
    for name in names:
        if name not in known:
            raise BadInput("judges", name, f"some of {', '.join(sorted(known))}")
        factory: Callable[[ImageModel], Judge] = known[name].load()
        judge = factory(model)
        if not 0 <= judge.threshold <= 1:
            raise BadNumber(f"judge {name}", f"has the threshold {judge.threshold} where a probability is due")
        judges.append(judge)
    return judges
