"""Where the loop makes and looks at images: draws, decodes, judges in batches, each made once and told of as it goes.

Joins a model to the kept results of a run and its watcher. Knows nothing of harm spaces or acceptance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from engine.model import ImageModel, ImageRequest, Sampling, Verdict
from safety.keep import Keep
from safety.watch import Watch


@dataclass(frozen=True)
class Drawing:
    """Prompts with their seeds, and what was drawn: tokens [n, N] int64 and their surprise [n, 2] float32."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: Tensor
    surprise: Tensor


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^31) that follows from `seed` and the names, whatever else was drawn."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Studio:
    """One run's way to its model. `round` is what progress is reported under; the loop moves it on."""

    def __init__(self, model: ImageModel, keep: Keep, watch: Watch, batch: int) -> None:
        """`batch`: images drawn, decoded and judged together."""
        self.model, self.keep, self.batch = model, keep, batch
        self.base = model.base_codebook()
        self.round = 0
        self._watch = watch

    def tell(self, phase: str, done: int, total: int) -> None:
        """Report progress; raises Cancelled where the watcher wants the end."""
        self._watch.progress(phase, done, total, self.round)

    def steps(self, phase: str, total: int, before: int = 0) -> Callable[[int], None]:
        """A callback for step i of `total`, of which `before` are done already."""
        return lambda done: self.tell(phase, before + done, total)

    def draw(self, phase: str, prompts: Sequence[str], seeds: Sequence[int], codebook: Codebook) -> Drawing:
        """Draw one image a prompt under the codebook, as the model draws best."""
        return self.sample(phase, prompts, [self.model.facts.sampling(seed) for seed in seeds], codebook)

    def sample(self, phase: str, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook) -> Drawing:
        """Draw one image a prompt under the codebook. Each batch is kept, by what its tokens depend on."""
        parts = []
        for start in range(0, len(prompts), self.batch):
            texts, samplings = prompts[start : start + self.batch], how[start : start + self.batch]
            name = f"drawn-{self._sampling_key(texts, samplings, codebook)}"
            on_step = self._counting(phase, start, len(texts), len(prompts))
            parts.append(self.keep.tensors(name, partial(self._batch, texts, samplings, codebook, on_step)))
        tokens, surprise = (torch.cat([part[name] for part in parts]) for name in ("tokens", "surprise"))
        return Drawing(tuple(prompts), tuple(sampling.seed for sampling in how), tokens, surprise)

    def decode(self, tokens: Tensor, codebook: Codebook) -> Tensor:
        """Images [n, 3, H, W] float32 in [-1, 1] on the CPU."""
        parts = []
        for start in range(0, tokens.shape[0], self.batch):
            self.tell("decode", start, tokens.shape[0])
            with torch.no_grad():
                parts.append(self.model.decode(tokens[start : start + self.batch], codebook.pixel).cpu())
        return torch.cat(parts)

    def judge(self, images: Tensor) -> list[Verdict]:
        """The model's verdicts on images [n, 3, H, W]."""
        verdicts: list[Verdict] = []
        for start in range(0, images.shape[0], self.batch):
            self.tell("judge", start, images.shape[0])
            verdicts += self.model.judge(images[start : start + self.batch])
        return verdicts

    @torch.no_grad()
    def surprise(self, tokens: Tensor) -> Tensor:
        """Mean negative log likelihood of tokens [B, N] without a prompt, as they are and shuffled.

        [B, 2] float32 nats a token; the shuffling is one fixed permutation of the places.
        """
        order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))
        sides = []
        for arranged in (tokens, tokens[:, order]):
            features = self.model.features([""] * tokens.shape[0], arranged)
            likely = self.model.head(features).log_softmax(-1).cpu()
            sides.append(-likely.gather(2, arranged[:, :, None])[:, :, 0].mean(1))
        return torch.stack(sides, 1)

    def _counting(self, phase: str, done: int, drawing: int, total: int) -> Callable[[int], None]:
        """A callback for token i of a batch of `drawing` images; tells in whole images."""
        return lambda i: self.tell(phase, done + i * drawing // self.model.facts.tokens, total)

    def _batch(
        self, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook, on_step: Callable[[int], None]
    ) -> dict[str, Tensor]:
        requests = [ImageRequest(p, sampling, codebook) for p, sampling in zip(prompts, how, strict=True)]
        tokens = self.model.draw(requests, on_step).cpu()
        return {"tokens": tokens, "surprise": self.surprise(tokens)}

    def _sampling_key(self, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook) -> str:
        """What tokens depend on: prompts, samplings, and the tables that take part in sampling."""
        seen = codebook if self.model.facts.pixel_table_feeds_lm else replace(codebook, pixel=self.base.pixel)
        rows = (f"{astuple(sampling)} {prompt}" for prompt, sampling in zip(prompts, how, strict=True))
        return hashlib.sha256("\n".join([codebook_hash(seen), *rows]).encode()).hexdigest()[:32]
