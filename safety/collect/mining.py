"""Mining of failures: images of fresh prompts under the codebook of a round that the model itself still finds unsafe.

Joins proposals to the collector of pairs. Harmless prompts are drawn too: an edit should leave their tokens alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codebook.value import Codebook
from safety.collect.collection import Collector, pair_from_dict, pair_to_dict
from safety.collect.pairs import Pair
from safety.collect.proposals import Count, Proposal, Proposals, concept_of
from safety.metrics.rates import Rate
from safety.policy.group_source import GroupSource
from safety.policy.policy import HARMLESS, in_turn
from safety.policy.prompts import PAIR, Prompt, is_readable
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext

EVEN, LIKELY = 0.3, 0.45  # shares of the probes: evenly over the strata, by their failure rates; the rest are variants


@dataclass(frozen=True)
class Mined:
    """The failures of one round.

    pairs: of failing images and the images of their rewrites. even: failures among the probes drawn evenly over the
    strata, an estimate for all of them. strata, concepts: posterior means of the failure rate, by name.
    changed: harmless prompts whose tokens differ from the base codebook's. failed: failures among all probes.
    """

    pairs: tuple[Pair, ...]
    failed: int
    even: Rate
    strata: Mapping[str, float]
    concepts: Mapping[str, float]
    changed: tuple[str, ...]
    report: dict[str, Any]


def mine(context: RunContext, codebook: Codebook) -> Mined:
    """Mine under the codebook; cached for a resume."""
    facts = context.runner.cache.facts(f"mined-{context.runner.round}", lambda: _mine(context, codebook))
    pairs = tuple(pair_from_dict(row) for row in facts["pairs"])
    even = Rate(*facts["even"])
    rates = facts["strata"], facts["concepts"]
    return Mined(pairs, facts["failed"], even, *rates, tuple(facts["changed"]), facts["report"])


def _mine(context: RunContext, codebook: Codebook) -> dict[str, Any]:
    seed = derived_seed(context.seed, "mine", context.runner.round)
    proposals = Proposals(
        GroupSource(context.policy, context.categories, seed), PAIR, held_keys(context), random.Random(seed)
    )
    probing = _Probing(Collector.of(context, codebook), proposals, {name: Counter() for name in context.categories})
    total, size = context.config.probes, context.config.batch
    first = round(EVEN * total)
    for start in range(0, first, size):
        probing.draw(proposals.even(min(size, first - start)))
    even = sum(count.failed for count in proposals.counts.values()), probing.drawn
    while probing.drawn < total:
        left = min(size, total - probing.drawn)
        batch = proposals.variants(round(left * (1 - EVEN - LIKELY) / (1 - EVEN)))
        batch += proposals.likely(left - len(batch))
        if not batch:
            break
        probing.draw(batch)
    changed, harmless = _changed(context, codebook, seed)
    report = {
        "even": Rate(*even).to_dict(),
        "concepts": {name: vars(count) for name, count in probing.concepts.items()},
        "strata": {name: vars(count) for name, count in proposals.counts.items()},
        "pairs": {name: dict(counts) for name, counts in probing.log.items()},
        "categories": dict(probing.labels),
        "harmless_changed": Rate(len(changed), harmless).to_dict(),
    }
    rates = [{name: count.mean for name, count in counts.items()} for counts in (proposals.counts, probing.concepts)]
    failed, pairs = probing.labels.total(), [pair_to_dict(pair) for pair in probing.pairs]
    found = {"pairs": pairs, "failed": failed, "even": even, "changed": changed, "report": report}
    return found | dict(zip(("strata", "concepts"), rates, strict=True))


class _Probing:
    """Draws proposals batch by batch and keeps their pairs. labels: failures by who named their category."""

    def __init__(self, collector: Collector, proposals: Proposals, log: dict[str, Counter[str]]) -> None:
        self._collector, self._proposals, self.log = collector, proposals, log
        self.pairs, self.labels, self.drawn = list[Pair](), Counter[str](), 0
        self.concepts: dict[str, Count] = {}

    def draw(self, batch: Sequence[Proposal]) -> None:
        """Draw one batch, at most the collector's."""
        prompts = [proposal.prompt for proposal in batch]
        tried = self._collector.draw_pairs(prompts, self.log)
        self._proposals.record(batch, tried.unsafe)
        self.pairs += tried.pairs
        self.drawn += len(batch)
        for prompt, unsafe in zip(prompts, tried.unsafe, strict=True):
            count = self.concepts.setdefault(concept_of(prompt), Count())
            count.drawn, count.failed = count.drawn + 1, count.failed + unsafe
        verdicts = zip(prompts, tried.unsafe, tried.categories, strict=True)
        self.labels.update("judge" if p.category == named else "policy" for p, unsafe, named in verdicts if unsafe)


def _changed(context: RunContext, codebook: Codebook, seed: int) -> tuple[list[str], int]:
    """Harmless prompts whose tokens differ from the base codebook's, and the number of prompts drawn."""
    runner, source, held = context.runner, GroupSource(context.policy, context.categories, seed), held_keys(context)
    count = context.config.harmless_probes
    groups = [source.take(group, PAIR, count) for kind in HARMLESS for group in source.groups(kind)]
    prompts = in_turn(([p for p in group if p.key not in held] for group in groups), count)
    texts = [prompt.text for prompt in prompts if is_readable(runner.model, prompt.text)]
    seeds = [derived_seed(seed, "harmless", i) for i in range(len(texts))]
    before, after = (runner.tokens("harmless", texts, seeds, book) for book in (runner.base, codebook))
    same = (before == after).all(1).tolist()
    return [text for text, kept in zip(texts, same, strict=True) if not kept], len(texts)


def held_keys(context: RunContext) -> frozenset[str]:
    """Keys of the prompts that a run measures on."""
    prompts = context.prompts
    held: list[Prompt] = [*prompts.validation.prompts, *prompts.heldout.prompts, *prompts.canaries]
    return frozenset(prompt.key for prompt in held)
