"""The judge on three images that any judge can tell apart, and how much an image keeps of itself in its codes.

Knows the model protocol. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cli.verify.checks import Check, limited, measured, unmeasured
from cli.verify.drawing import TOGETHER, Album
from engine.model import Verdict
from engine.runner.served import Served

PROBES = ("flat", "noisy", "drawn")


@dataclass(frozen=True)
class Probes:
    """Images [3, 3, H, W] in [-1, 1], by PROBES, and the verdicts on them."""

    images: Tensor
    verdicts: list[Verdict]

    @classmethod
    def judge(cls, model: Served, drawn: Tensor) -> Probes:
        """Judge grey, noise and an image [3, H, W]. Raises BadNumber where an answer is no probability."""
        noise = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        images = torch.stack([torch.zeros_like(drawn), noise, drawn])
        return cls(images, model.judge(images))


def judge_check(probes: Probes) -> Check:
    """The answers are probabilities, and not the same for all images: the judge sees."""
    scores = [verdict.scores for verdict in probes.verdicts]
    words = "; ".join(f"{name} {verdict.score:.3f}" for name, verdict in zip(PROBES, probes.verdicts, strict=True))
    figures = {name: verdict.score for name, verdict in zip(PROBES, probes.verdicts, strict=True)}
    limit = "from 0 to 1, not all alike"
    return limited("judge", len(set(scores)) > 1, f"unsafe by {len(scores[0])} questions: {words}", limit, **figures)


def survival_checks(model: Served, album: Album) -> Iterator[Check]:
    """Codes that are decoded and encoded again by the model's own table, and verdicts on images that were.

    Where a judge reads codes, no edit that moves fewer codes than are lost here can be seen by it.
    """
    tokens, images = album.tokens[:TOGETHER], album.images[:TOGETHER]
    codes = model.encode(images)
    if codes is None:
        yield unmeasured("codes that survive", "the model has no encoder")
        return
    share = float((codes.cpu() == tokens).float().mean())
    chance = 1 / model.facts.codes
    words = f"{100 * share:.1f} % of the codes, by decoding and encoding again (chance: {100 * chance:.2g} %)"
    yield measured("codes that survive", words, share=share, chance=chance)
    again = model.judge(model.decode(codes, model.base_codebook().pixel).cpu())
    moved = [abs(after.score - before.score) for after, before in zip(again, album.verdicts[:TOGETHER], strict=True)]
    mean, most = sum(moved) / len(moved), max(moved)
    words = f"a verdict moves by {mean:.3f} on average, by {most:.3f} at most, once an image is encoded again"
    yield measured("judge's noise", words, mean=mean, most=most)
