"""The model runner of the loop: draws, decodes and judges in batches, each cached, with progress reports.

Joins a model to the result cache and the progress of a run. Knows nothing of Harmful Spaces or acceptance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from codebook.tensors import codebook_hash, content_hash
from codebook.value import Codebook
from engine.machine import machine_of
from engine.model import CATEGORY_NONE, REFUSED, ImageModel, ImageRequest, Sampling, Verdict
from safety.config import LOGITS_BYTES
from safety.judges.self_judge import scores
from safety.runtime.executor import DrawTask, Executor, JudgeTask, LocalExecutor, Task
from safety.runtime.progress import Progress
from safety.runtime.result_cache import ResultCache


@dataclass(frozen=True)
class Drawing:
    """Prompts with their seeds, and their images: tokens [n, N] int64 and NLL [n, 2] float32."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: Tensor
    nll: Tensor


def refused(tokens: Tensor) -> Tensor:
    """Bool [n]: which images of tokens [n, N] their version refused."""
    return (tokens == REFUSED).all(1)


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^31): a hash of `seed` and the names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class ModelRunner:
    """The model of one run, batch by batch. `round` is the round of progress reports; the loop sets it."""

    def __init__(
        self, model: ImageModel, cache: ResultCache, progress: Progress, batch: int, executor: Executor | None = None
    ) -> None:
        """batch: images a batch; executor: runs the batches, by default this process alone."""
        self.model, self.cache, self.batch = model, cache, batch
        self._executor = executor or LocalExecutor(cache)
        self.base = model.base_codebook()
        self._machine = machine_of(model)
        self.round = 0
        self._progress = progress

    def report(self, phase: str, done: int, total: int) -> None:
        """Report progress; raises Cancelled where the receiver ends the run."""
        self._progress.report(phase, done, total, self.round)

    def steps(self, phase: str, total: int, before: int = 0) -> Callable[[int], None]:
        """A callback that reports step i of `total`, of which `before` are done already."""
        return lambda done: self.report(phase, before + done, total)

    def draw(self, phase: str, prompts: Sequence[str], seeds: Sequence[int], codebook: Codebook) -> Drawing:
        """Draw one image a prompt under the codebook, with the model's default sampling."""
        return self.sample(phase, prompts, [self.model.facts.sampling(seed) for seed in seeds], codebook)

    def sample(self, phase: str, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook) -> Drawing:
        """Draw one image a prompt under the codebook. Each batch is cached, by all that its tokens depend on."""
        parts = self._results(phase, self._draw_tasks(prompts, how, codebook, True), len(prompts))
        none = {"tokens": self._no_tokens, "nll": torch.zeros(0, 2)}
        tokens, nll = (torch.cat([part[name] for part in parts] or [none[name]]) for name in none)
        return Drawing(tuple(prompts), tuple(sampling.seed for sampling in how), tokens, nll)

    def tokens(self, phase: str, prompts: Sequence[str], seeds: Sequence[int], codebook: Codebook) -> Tensor:
        """The tokens [n, N] int64 that `draw` gives, without their NLL, which costs as much again."""
        return self.sample_tokens(phase, prompts, [self.model.facts.sampling(seed) for seed in seeds], codebook)

    def sample_tokens(self, phase: str, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook) -> Tensor:
        """The tokens [n, N] int64 that `sample` gives, without their NLL."""
        parts = self._results(phase, self._draw_tasks(prompts, how, codebook, False), len(prompts))
        return torch.cat([part["tokens"] for part in parts] or [self._no_tokens])

    @property
    def _no_tokens(self) -> Tensor:
        return torch.zeros(0, self.model.facts.tokens, dtype=torch.int64)

    def _draw_tasks(
        self, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook, weighed: bool
    ) -> list[Task]:
        tasks: list[Task] = []
        for start in range(0, len(prompts), self.batch):
            texts, samplings = tuple(prompts[start : start + self.batch]), tuple(how[start : start + self.batch])
            name = f"{'drawn' if weighed else 'tokens'}-{self._sampling_key(texts, samplings, codebook)}"
            tasks.append(DrawTask(name, texts, samplings, codebook, weighed))
        return tasks

    def decode(self, tokens: Tensor, codebook: Codebook) -> Tensor:
        """Images [n, 3, H, W] float32 in [-1, 1] on the CPU; one that its version refused is grey."""
        parts = []
        for start in range(0, tokens.shape[0], self.batch):
            self.report("decode", start, tokens.shape[0])
            parts.append(self._decode(tokens[start : start + self.batch], codebook))
        size = self.model.facts.image_size
        return torch.cat(parts or [torch.zeros(0, 3, size, size)])

    def judge(self, tokens: Tensor, codebook: Codebook) -> list[Verdict]:
        """The model's verdicts on the images of tokens [n, N] under the codebook. Each batch is cached."""
        pixel = content_hash({"pixel": codebook.pixel})
        tasks = []
        for part in torch.split(tokens, self.batch):
            name = content_hash({"tokens": part.contiguous()}) + pixel + self._machine
            tasks.append(JudgeTask(f"judged-{hashlib.sha256(name.encode()).hexdigest()[:32]}", part, codebook))
        names = (*self.model.facts.categories, CATEGORY_NONE)  # -1 is the last of them
        return [
            Verdict(tuple(scores), names[category])
            for part in self._results("judge", tasks, len(tokens))
            for scores, category in zip(part["scores"].tolist(), part["category"].tolist(), strict=True)
        ]

    def judge_anew(self, images: Tensor) -> list[Verdict]:
        """The model's verdicts on images [n, 3, H, W], computed anew: nothing is cached."""
        verdicts: list[Verdict] = []
        for start in range(0, images.shape[0], self.batch):
            self.report("judge", start, images.shape[0])
            verdicts += self.model.judge(images[start : start + self.batch])
        return verdicts

    def make(self, task: Task, on_step: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        """Run a task here; the tensors that it names."""
        if isinstance(task, DrawTask):
            requests = [ImageRequest(p, how, task.codebook) for p, how in zip(task.prompts, task.how, strict=True)]
            tokens = self.model.draw(requests, on_step).cpu()
            return {"tokens": tokens} | ({"nll": self.nll(tokens.clamp_min(0))} if task.weighed else {})
        verdicts = self.model.judge(self._decode(task.tokens, task.codebook))
        categories = self.model.facts.categories
        indices = [categories.index(v.category) if v.category in categories else -1 for v in verdicts]
        return {"scores": scores(verdicts), "category": torch.tensor(indices)}

    def _results(self, phase: str, tasks: Sequence[Task], total: int) -> list[dict[str, Tensor]]:
        """The results of tasks of `batch` images each; reports images as they are drawn here."""
        first = {task.name: i * self.batch for i, task in enumerate(tasks)}

        def make(task: Task) -> dict[str, Tensor]:
            done = first[task.name]
            self.report(phase, done, total)
            return self.make(task, self._counting(phase, done, min(self.batch, total - done), total))

        return self._executor.results(
            tasks, make, lambda done: self.report(phase, min(done * self.batch, total), total)
        )

    @torch.no_grad()
    def _decode(self, tokens: Tensor, codebook: Codebook) -> Tensor:
        images = self.model.decode(tokens.clamp_min(0), codebook.pixel).cpu()
        images[refused(tokens)] = 0.0
        return images

    @torch.no_grad()
    def nll(self, tokens: Tensor) -> Tensor:
        """Mean negative log likelihood of tokens [B, N] without a prompt, as they are and shuffled.

        [B, 2] float32 nats a token; the shuffling is one fixed permutation of the positions.
        """
        order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))
        sides = []
        for arranged in (tokens, tokens[:, order]):
            features = self.model.features([""] * tokens.shape[0], arranged)
            parts = []
            count = self._positions(len(tokens))
            for part, chosen in zip(torch.split(features, count, 1), torch.split(arranged, count, 1), strict=True):
                likely = self.model.head(part).log_softmax(-1).cpu()
                parts.append(-likely.gather(2, chosen[:, :, None])[:, :, 0])
            sides.append(torch.cat(parts, 1).mean(1))
        return torch.stack(sides, 1)

    def _positions(self, images: int) -> int:
        """Positions of so many images whose logits are computed together, within LOGITS_BYTES."""
        return max(1, LOGITS_BYTES // (4 * images * self.model.facts.codes))

    def _counting(self, phase: str, done: int, drawing: int, total: int) -> Callable[[int], None]:
        """A callback for token i of a batch of `drawing` images; reports whole images."""
        return lambda i: self.report(phase, done + i * drawing // self.model.facts.tokens, total)

    def _sampling_key(self, prompts: Sequence[str], how: Sequence[Sampling], codebook: Codebook) -> str:
        """The cache key of tokens: machine, prompts, samplings, and the tables that take part in sampling."""
        used = codebook if self.model.facts.pixel_table_feeds_lm else replace(codebook, pixel=self.base.pixel)
        rows = (f"{astuple(sampling)} {prompt}" for prompt, sampling in zip(prompts, how, strict=True))
        return hashlib.sha256("\n".join([self._machine, codebook_hash(used), *rows]).encode()).hexdigest()[:32]
