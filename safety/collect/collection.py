"""Collecting the pairs of a round: draw, judge, rewrite, draw again, judge again, keep or say why not.

Joins the studio to the rules in `safety/collect/pairs.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.pairs import Pair, choose_rewrite, pair_confidence, rejections
from safety.config import LoopConfig
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.degenerate import DegenerateDetector
from safety.policy.prompts import Prompt, is_readable
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.run_context import RunContext


@dataclass(frozen=True)
class Collection:
    """pairs: the kept ones. log: by category, how many prompts were drawn, kept, and rejected for which reason."""

    pairs: tuple[Pair, ...]
    log: dict[str, dict[str, int]]


def collect(context: RunContext, codebook: Codebook) -> Collection:
    """The pairs of this round, drawn under the codebook; kept for a resume."""
    runner, terms = context.runner, context.taxonomy.terms()
    baseline = context.baseline
    limits = (baseline.validity_of_any, baseline.validity)
    collector = Collector(runner, codebook, limits, terms, context.config, context.seed)
    return collector.collect(context.prompts.pairs[runner.round - 1], context.prompts.operator)


@dataclass(frozen=True)
class Collector:
    """Collects pairs under one codebook.

    validity: of the unsafe side and of the safe side. terms: the harmful terms that no rewrite may hold.
    """

    runner: ModelRunner
    codebook: Codebook
    validity: tuple[DegenerateDetector, DegenerateDetector]
    terms: Sequence[str]
    config: LoopConfig
    seed: int

    def collect(self, wanted: Mapping[str, Sequence[Prompt]], given: Sequence[Prompt]) -> Collection:
        """Collect from each category's prompts until it has enough, and from all prompts given by the operator.

        The result is kept for a resume.
        """
        found = self.runner.cache.facts(f"pairs-{self.runner.round}", lambda: self._collect(wanted, given))
        return Collection(tuple(_read(row) for row in found["pairs"]), found["log"])

    def _collect(self, wanted: Mapping[str, Sequence[Prompt]], given: Sequence[Prompt]) -> dict[str, Any]:
        pairs: list[Pair] = []
        log: dict[str, Counter[str]] = {name: Counter() for name in wanted}
        for start in range(0, len(given), self.config.batch):
            pairs += self._try(given[start : start + self.config.batch], log)
        for prompts in wanted.values():
            kept, drawn = 0, 0
            while kept < self.config.pairs and drawn < len(prompts):
                size = min(self.config.batch, 2 * (self.config.pairs - kept))
                found = self._try(prompts[drawn : drawn + size], log)
                kept, drawn = kept + len(found), drawn + size
                pairs += found
        return {"pairs": [_written(pair) for pair in pairs], "log": {name: dict(log[name]) for name in log}}

    def _try(self, prompts: Sequence[Prompt], log: Mapping[str, Counter[str]]) -> list[Pair]:
        """The pairs that these prompts give; what becomes of each prompt is counted in the log of its category."""
        seeds = [derived_seed(self.seed, "pairs", self.runner.round, prompt.text) for prompt in prompts]
        unsafe = self._see("unsafe", self.validity[0], [prompt.text for prompt in prompts], seeds)
        rewrites = self.runner.model.rewrite([prompt.text for prompt in prompts])
        halves: list[_Half] = []
        for i, prompt in enumerate(prompts):
            named = prompt.category or unsafe.categories[i]
            if named not in log:
                continue  # an operator's prompt whose image shows nothing this run works on
            log[named]["drawn"] += 1
            safe = choose_rewrite(prompt, rewrites[i], self.terms)
            if safe is not None and not is_readable(self.runner.model, safe):
                safe = None
            if safe is None or not unsafe.unsafe[i]:
                log[named]["no_rewrite" if safe is None else "not_unsafe"] += 1
            else:
                halves.append(_Half(i, named, safe))
        return self._finish(prompts, seeds, unsafe, halves, log) if halves else []

    def _finish(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        unsafe: _Seen,
        halves: Sequence[_Half],
        log: Mapping[str, Counter[str]],
    ) -> list[Pair]:
        rows = torch.tensor([half.row for half in halves])
        safe = self._see("safe", self.validity[1], [half.safe for half in halves], [seeds[half.row] for half in halves])
        reasons = rejections(unsafe.scores[rows], safe.scores, unsafe.degenerate[rows], safe.degenerate)
        sure = pair_confidence(unsafe.scores[rows], safe.scores)
        pairs = []
        for i, (half, reason) in enumerate(zip(halves, reasons, strict=True)):
            log[half.category][reason or "kept"] += 1
            if not reason:
                prompt, tokens = prompts[half.row], (unsafe.tokens[half.row], safe.tokens[i])
                texts = (prompt.text, half.safe, half.category, prompt.concept)
                pairs.append(Pair(*texts, seeds[half.row], *tokens, sure[i]))
        return pairs

    def _see(self, phase: str, validity: DegenerateDetector, texts: Sequence[str], seeds: Sequence[int]) -> _Seen:
        drawn = self.runner.draw(phase, texts, seeds, self.codebook)
        images = self.runner.decode(drawn.tokens, self.codebook)
        verdicts = self.runner.judge(drawn.tokens, self.codebook)
        degenerate = validity.degenerate(images, drawn.tokens, drawn.nll)
        return _Seen(drawn.tokens, scores(verdicts), degenerate, [verdict.category for verdict in verdicts])


@dataclass(frozen=True)
class _Seen:
    """Images of one batch as tokens [B, N], scores [B, phrasings], void [B], and the judge's categories."""

    tokens: Tensor
    scores: Tensor
    degenerate: Tensor
    categories: list[str]

    @property
    def unsafe(self) -> Tensor:
        return says_unsafe(self.scores)


@dataclass(frozen=True)
class _Half:
    """A prompt (its row in the batch) whose image is unsafe, and the rewrite to draw beside it."""

    row: int
    category: str
    safe: str


def _written(pair: Pair) -> dict[str, Any]:
    return vars(pair) | {"tokens": pair.tokens.tolist(), "safe_tokens": pair.safe_tokens.tolist()}


def _read(row: dict[str, Any]) -> Pair:
    return Pair(**row | {name: torch.tensor(row[name]) for name in ("tokens", "safe_tokens")})
