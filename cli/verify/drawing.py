"""Sixteen images of a model: the first one, their speed, whether prompts matter and batches do not.

Knows the model protocol. Knows nothing of reference code and pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cli.verify.checks import Check, limited, measured
from engine.model import ImageRequest, Verdict
from engine.runner.batch import check_drawn
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served

PROMPTS = (
    *("a red apple", "a cat", "a blue bicycle", "two yellow bananas"),
    *("a dog on a green background", "a portrait of an old man, oil painting", "a bowl of soup", "a house by a lake"),
    *("a fire engine", "a bunch of flowers in a vase", "a map of an island", "a robot reading a book"),
    *("mountains at sunset", "the word HELLO on a sign", "ein roter Apfel", "an owl, pencil drawing"),
)
SEED, TOGETHER = 1, 4


@dataclass(frozen=True)
class Drawn:
    """Images drawn together. seconds: to draw, to decode and to judge them."""

    tokens: Tensor
    images: Tensor
    verdicts: Sequence[Verdict]
    seconds: tuple[float, float, float]

    @property
    def rate(self) -> float:
        """Images a second, judged."""
        return len(self.images) / sum(self.seconds)


@dataclass(frozen=True)
class Album:
    """The images of PROMPTS under one seed: the first two drawn alone, then all of them TOGETHER at a time."""

    alone: tuple[Drawn, Drawn]
    groups: tuple[Drawn, ...]

    @property
    def tokens(self) -> Tensor:
        """[16, N]."""
        return torch.cat([group.tokens for group in self.groups])

    @property
    def images(self) -> Tensor:
        """[16, 3, H, W] in [-1, 1]."""
        return torch.cat([group.images for group in self.groups])

    @property
    def verdicts(self) -> list[Verdict]:
        """One an image."""
        return [verdict for group in self.groups for verdict in group.verdicts]

    @classmethod
    def draw(cls, model: Served) -> Album:
        """Draw it as a server does, in one running batch. Raises BadNumber and BadInput as the model does."""
        base = model.base_codebook()
        requests = [ImageRequest(prompt, model.facts.sampling(SEED), base) for prompt in PROMPTS]
        batch = model.running_batch(2 * TOGETHER)  # under guidance an image takes two rows

        def draw(some: Sequence[ImageRequest]) -> Drawn:
            start = time.perf_counter()
            sequences = [ImageSequence(request, model.tokenize(request.prompt)) for request in some]
            batch.admit(sequences)
            while batch.sequences:
                batch.step()
            tokens = check_drawn(torch.stack([sequence.tokens for sequence in sequences])).cpu()
            drawn = time.perf_counter()
            images = model.decode(tokens, base.pixel).cpu()
            decoded = time.perf_counter()
            verdicts = model.judge(images)
            seconds = drawn - start, decoded - drawn, time.perf_counter() - decoded
            return Drawn(tokens, images, verdicts, seconds)

        alone = draw(requests[:1]), draw(requests[1:2])
        groups = tuple(draw(requests[start : start + TOGETHER]) for start in range(0, len(requests), TOGETHER))
        return cls(alone, groups)


def album_checks(album: Album) -> Iterator[Check]:
    """Look at what was drawn."""
    yield _first(album.alone[0])
    different = len({tuple(row) for row in album.tokens.tolist()})
    words = f"{different} of {len(PROMPTS)} images differ"
    yield limited("prompts matter", different > len(PROMPTS) // 2, words, "more than half", images=different)
    yield _batches(album)
    yield _speed(album)


def _first(drawn: Drawn) -> Check:
    spread, codes = float(drawn.images.std()), len(set(drawn.tokens.flatten().tolist()))
    words = f"{codes} different codes, pixels spread by {spread:.2f}, after {sum(drawn.seconds):.2f} s"
    figures = {"codes": float(codes), "spread": spread, "seconds": sum(drawn.seconds)}
    return limited("first image", spread > 0 and codes > 1, words, "not of one code or colour", **figures)


def _batches(album: Album) -> Check:
    """The images that were drawn alone, against the same ones among others."""
    together = album.groups[0]
    differing = [
        part
        for i, alone in enumerate(album.alone)
        for part, equal in (
            ("tokens", torch.equal(alone.tokens[0], together.tokens[i])),
            ("pixels", torch.equal(alone.images[0], together.images[i])),
            ("verdicts", alone.verdicts[0] == together.verdicts[i]),
        )
        if not equal
    ]
    words = f"of {len(album.alone)} images alone and among {TOGETHER}"
    result = f"tokens, pixels and verdicts {words} equal" if not differing else f"{', '.join(differing)} {words} differ"
    return limited("batch-invariance", not differing, result, "none differs", differing=len(differing))


def _speed(album: Album) -> Check:
    """At batch 1 of the second image; at batch TOGETHER of the fastest group, since the first one may still warm up."""
    one, four = album.alone[1], max(album.groups, key=lambda group: group.rate)
    drawn, decoded, judged = one.seconds
    parts = f"drawn in {drawn:.2f} s, decoded in {decoded:.2f}, judged in {judged:.2f}"
    words = f"{one.rate:.2f} images a second alone ({parts}), {four.rate:.2f} by {TOGETHER}"
    return measured("speed", words, alone=one.rate, together=four.rate, first_s=sum(album.alone[0].seconds))
