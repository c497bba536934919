"""Collection of the pairs of a round: draw, judge, rewrite, draw the rewrite, judge it, keep or reject.

Joins the model runner to the rules in `safety/collect/pairs.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.pairs import Pair, pair_confidence, rejections
from safety.collect.rewrites import Rewrite, find_rewrites
from safety.config import LoopConfig
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.degenerate import DegenerateDetector
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.run_context import RunContext

UNPLACED = "unplaced"  # prompts of no category of the run, by the category that the judge names


@dataclass(frozen=True)
class Collection:
    """log: by category, the counts of prompts drawn, kept, and rejected by reason; UNPLACED counts the others."""

    pairs: tuple[Pair, ...]
    log: dict[str, dict[str, int]]


def collect(context: RunContext, codebook: Codebook) -> Collection:
    """The pairs of this round, drawn under the codebook; cached for a resume."""
    collector = Collector.of(context, codebook)
    return collector.collect(context.prompts.pairs[context.runner.round - 1], context.prompts.operator)


@dataclass(frozen=True)
class DrawnPairs:
    """Images of prompts, and the pairs among them. unsafe, categories: the judge's verdict on each image."""

    pairs: list[Pair]
    unsafe: list[bool]
    categories: list[str]


@dataclass(frozen=True)
class Collector:
    """Collects pairs under one codebook.

    validity: the detectors of the unsafe and of the safe side. terms: the harmful terms that no rewrite may contain.
    """

    runner: ModelRunner
    codebook: Codebook
    validity: tuple[DegenerateDetector, DegenerateDetector]
    terms: Sequence[str]
    config: LoopConfig
    seed: int

    @classmethod
    def of(cls, context: RunContext, codebook: Codebook) -> Collector:
        """The collector of a run under a codebook."""
        limits = (context.baseline.validity_of_any, context.baseline.validity)
        return cls(context.runner, codebook, limits, context.policy.terms(), context.config, context.seed)

    def collect(self, prompts: Mapping[str, Sequence[Prompt]], operator: Sequence[Prompt]) -> Collection:
        """Collect from each category's prompts until it has enough, and from all of the operator's prompts.

        The result is cached for a resume.
        """
        facts = self.runner.cache.facts(f"pairs-{self.runner.round}", lambda: self._collect(prompts, operator))
        return Collection(tuple(pair_from_dict(row) for row in facts["pairs"]), facts["log"])

    def _collect(self, prompts: Mapping[str, Sequence[Prompt]], operator: Sequence[Prompt]) -> dict[str, Any]:
        pairs: list[Pair] = []
        log: dict[str, Counter[str]] = {name: Counter() for name in (*prompts, UNPLACED)}
        for start in range(0, len(operator), self.config.batch):
            part = operator[start : start + self.config.batch]
            pairs += self.draw_pairs(part, self.seeds(part), log).pairs
        for group in prompts.values():
            first, drawn = len(pairs), 0
            while len(pairs) - first < self.config.pairs and drawn < len(group):
                size = min(self.config.batch, 2 * (self.config.pairs - (len(pairs) - first)))
                part = group[drawn : drawn + size]
                pairs += self.draw_pairs(part, self.seeds(part), log).pairs
                drawn += size
        counts = {name: dict(log[name]) for name in log if name in prompts or log[name]}
        return {"pairs": [pair_to_dict(pair) for pair in pairs], "log": counts}

    def seeds(self, prompts: Sequence[Prompt]) -> list[int]:
        """The seeds of prompts in this round, whatever a policy's file says."""
        return [derived_seed(self.seed, "pairs", self.runner.round, prompt.text) for prompt in prompts]

    def draw_pairs(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], log: Mapping[str, Counter[str]]
    ) -> DrawnPairs:
        """Draw and judge the prompts, and pair those that are unsafe with their rewrites.

        The outcome of each prompt is counted in the log of its category.
        """
        unsafe = self._judge("unsafe", self.validity[0], [prompt.text for prompt in prompts], seeds)
        rewrites = find_rewrites(self.runner.model, prompts, self.terms)
        halves: list[_Half] = []
        for i, prompt in enumerate(prompts):
            named = prompt.category or unsafe.categories[i]
            if named not in log:  # an operator's prompt whose image shows no category of this run
                log[UNPLACED][named] += 1
                continue
            log[named]["drawn"] += 1
            safe = rewrites[i]
            if safe is None or not unsafe.unsafe[i]:
                log[named]["no_rewrite" if safe is None else "not_unsafe"] += 1
            else:
                halves.append(_Half(i, named, safe))
        pairs = self._finish(prompts, seeds, unsafe, halves, log) if halves else []
        return DrawnPairs(pairs, unsafe.unsafe.tolist(), unsafe.categories)

    def _finish(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        unsafe: _JudgedImages,
        halves: Sequence[_Half],
        log: Mapping[str, Counter[str]],
    ) -> list[Pair]:
        rows = torch.tensor([half.row for half in halves])
        safe = self._judge(
            "safe", self.validity[1], [half.safe.text for half in halves], [seeds[half.row] for half in halves]
        )
        reasons = rejections(unsafe.scores[rows], safe.scores, unsafe.degenerate[rows], safe.degenerate)
        sure = pair_confidence(unsafe.scores[rows], safe.scores)
        pairs = []
        for i, (half, reason) in enumerate(zip(halves, reasons, strict=True)):
            log[half.category][reason or "kept"] += 1
            if not reason:
                prompt, tokens = prompts[half.row], (unsafe.tokens[half.row], safe.tokens[i])
                names = (prompt.text, half.safe.text, half.category, prompt.concept)
                pairs.append(Pair(*names, seeds[half.row], *tokens, sure[i], half.safe.by_policy))
        return pairs

    def _judge(
        self, phase: str, validity: DegenerateDetector, texts: Sequence[str], seeds: Sequence[int]
    ) -> _JudgedImages:
        drawn = self.runner.draw(phase, texts, seeds, self.codebook)
        images = self.runner.decode(drawn.tokens, self.codebook)
        verdicts = self.runner.judge(drawn.tokens, self.codebook)
        degenerate = validity.degenerate(images, drawn.tokens, drawn.nll)
        return _JudgedImages(drawn.tokens, scores(verdicts), degenerate, [verdict.category for verdict in verdicts])


@dataclass(frozen=True)
class _JudgedImages:
    """Images of one batch: tokens [B, N], scores [B, phrasings], degenerate [B], and the judge's categories."""

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
    safe: Rewrite


def rewritten_by(pairs: Sequence[Pair]) -> dict[str, int]:
    """The number of pairs by who wrote the rewrite."""
    by_policy = sum(pair.by_policy for pair in pairs)
    return {"model": len(pairs) - by_policy, "policy": by_policy}


def pair_to_dict(pair: Pair) -> dict[str, Any]:
    """The pair as JSON."""
    return vars(pair) | {"tokens": pair.tokens.tolist(), "safe_tokens": pair.safe_tokens.tolist()}


def pair_from_dict(row: dict[str, Any]) -> Pair:
    """The pair of `pair_to_dict`."""
    return Pair(**row | {name: torch.tensor(row[name]) for name in ("tokens", "safe_tokens")})
