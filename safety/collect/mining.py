"""Mining of failures: images of fresh prompts under the codebook of a round that the model itself still finds unsafe.

Joins proposals to the collector of pairs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codebook.value import Codebook
from safety.collect.collection import Collector, pair_from_dict, pair_to_dict, rewritten_by
from safety.collect.pairs import Pair
from safety.collect.proposals import Count, Proposal, Proposals, concept_of
from safety.metrics.rates import Rate
from safety.policy.group_source import GroupSource
from safety.policy.prompts import PAIR, is_readable
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext

EVEN, LIKELY = 0.3, 0.45  # shares of the probes: evenly over the strata, by their failure rates; the rest are variants


@dataclass(frozen=True)
class Mined:
    """The failures of one round.

    pairs: of failing images and the images of their rewrites. even: failures among the probes drawn evenly over the
    strata, an estimate for all of them. strata, concepts: posterior means of the failure rate, by name.
    failed: failures among all probes.
    """

    pairs: tuple[Pair, ...]
    failed: int
    even: Rate
    strata: Mapping[str, float]
    concepts: Mapping[str, float]
    report: dict[str, Any]


def mine(context: RunContext, codebook: Codebook) -> Mined:
    """Mine under the codebook; cached for a resume."""
    facts = context.runner.cache.facts(f"mined-{context.runner.round}", lambda: _mine(context, codebook))
    pairs, report = tuple(pair_from_dict(row) for row in facts["pairs"]), facts["report"]
    strata, concepts = (
        {name: Count(**count).mean for name, count in report[kind].items()} for kind in ("strata", "concepts")
    )
    failed = sum(report["categories"].values())
    return Mined(pairs, failed, Rate(*facts["even"]), strata, concepts, report)


def _mine(context: RunContext, codebook: Codebook) -> dict[str, Any]:
    seed = derived_seed(context.seed, "mine", context.runner.round)
    source, prompts = GroupSource(context.policy, context.categories, seed), context.prompts
    proposals = Proposals(source, PAIR, prompts.held_keys, random.Random(seed), prompts.learned_keys)
    probing = _Probing(context, codebook, proposals)
    total, size = context.config.probes, context.config.batch
    for batch in evenly(proposals, round(EVEN * total), size):
        probing.draw(batch)
    even = probing.labels.total(), max(1, probing.judged)
    for batch in by_failures(proposals, total - probing.drawn, size):
        probing.draw(batch)
    report = {
        "even": Rate(*even).to_dict(),
        "learned_before": probing.learned,
        "concepts": {name: vars(count) for name, count in probing.concepts.items()},
        "strata": {name: vars(count) for name, count in proposals.counts.items()},
        "pairs": {name: dict(counts) for name, counts in probing.log.items()},
        "categories": dict(probing.labels),
        "rewrites": rewritten_by(probing.pairs),
    }
    pairs = [pair_to_dict(pair) for pair in probing.pairs]
    return {"pairs": pairs, "even": even, "report": report}


def evenly(proposals: Proposals, count: int, size: int) -> Iterator[list[Proposal]]:
    """Up to `count` fresh proposals evenly over the strata, `size` a batch."""
    while count > 0 and (batch := proposals.even(min(size, count))):
        count -= len(batch)
        yield batch


def by_failures(proposals: Proposals, count: int, size: int) -> Iterator[list[Proposal]]:
    """Up to `count` proposals, `size` a batch: by the failure rates of their strata, and variants of failures.

    The caller records the outcomes of each batch before it takes the next.
    """
    while count > 0:
        left = min(size, count)
        batch = proposals.variants(round(left * (1 - EVEN - LIKELY) / (1 - EVEN)))
        batch += proposals.likely(left - len(batch))
        if not batch:
            return
        count -= len(batch)
        yield batch


class _Probing:
    """Draws proposals batch by batch and keeps their pairs.

    drawn: proposals so far; judged: those that the model can read; learned: those that the run has learned from before.
    labels: failures by who named their category.
    """

    def __init__(self, context: RunContext, codebook: Codebook, proposals: Proposals) -> None:
        self._context, self._proposals = context, proposals
        self._collector = Collector.of(context, codebook)
        self.log: dict[str, Counter[str]] = {name: Counter() for name in context.categories}
        self.pairs, self.labels, self.concepts = list[Pair](), Counter[str](), dict[str, Count]()
        self.drawn = self.judged = self.learned = 0

    def draw(self, proposals: Sequence[Proposal]) -> None:
        """Draw one batch, at most the collector's."""
        self.drawn += len(proposals)
        batch = [each for each in proposals if is_readable(self._context.runner.model, each.prompt.text)]
        if not batch:
            return
        prompts = [proposal.prompt for proposal in batch]
        seeds = self._collector.seeds(prompts)
        seeds = [seed if p.seed is None else p.seed for p, seed in zip(prompts, seeds, strict=True)]
        result = self._collector.draw_pairs(prompts, seeds, self.log)
        self._proposals.record(batch, result.unsafe)
        self.pairs += result.pairs
        self.judged += len(batch)
        self.learned += sum(prompt.key in self._context.prompts.learned_keys for prompt in prompts)
        for prompt, unsafe, named in zip(prompts, result.unsafe, result.categories, strict=True):
            count = self.concepts.setdefault(concept_of(prompt), Count())
            count.drawn, count.failed = count.drawn + 1, count.failed + unsafe
            if unsafe:
                self.labels["judge" if prompt.category == named else "policy"] += 1
