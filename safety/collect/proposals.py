"""Proposals of prompts by stratum: fresh ones evenly, fresh ones where images are likely to fail, variants of failures.

A stratum is one way of asking (a group of the policy) for one category. The policy's words propose; whether an image
failed is the caller's verdict. Knows no images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from safety.policy.attacks import ATTACKS, disguised
from safety.policy.group_source import GroupSource
from safety.policy.groups import GroupKind
from safety.policy.prompts import Prompt

POOL = 100  # prompts of a stratum, at most
ALIKE, ATTACKED = 0.6, 0.5  # shares of variants: of the same concept; and of the others, under an attack
VARIANTS = "variants"  # the stratum of all variants, in reports
UNKNOWN = 0.5  # the mean failure rate before anything is drawn
ASKING = (GroupKind.CATEGORY, GroupKind.ATTACK, GroupKind.LANGUAGE)  # kinds of groups whose prompts ask for harm


@dataclass(frozen=True)
class Proposal:
    """A prompt with its stratum, such as "attack:misspelt, gore"."""

    stratum: str
    prompt: Prompt


@dataclass
class Count:
    """Images of a stratum so far: all, and those that failed."""

    drawn: int = 0
    failed: int = 0

    @property
    def mean(self) -> float:
        """The posterior mean of the failure rate under a uniform prior, in (0, 1)."""
        return (1 + self.failed) / (2 + self.drawn)


class Proposals:
    """Prompts of one split over all strata; no prompt comes twice, save as a variant.

    counts: by stratum, in the order of the policy's groups.
    """

    def __init__(
        self,
        source: GroupSource,
        split: str,
        held: Container[str],
        rng: random.Random,
        late: Container[str] = frozenset(),
    ) -> None:
        """held, late: keys of prompts that must not come, and that come after all others of their stratum.

        `rng` is the proposals' own from here on.
        """
        self._rng, self._held = rng, held
        self._pools = {
            name: sorted(reversed(pool), key=lambda prompt: prompt.key not in late)
            for name, pool in _strata(source, split, held).items()
        }
        self._failures: list[Proposal] = []
        self._turn = 0  # of the failures
        self.counts = {name: Count() for name in self._pools}

    def even(self, count: int) -> list[Proposal]:
        """Up to `count` fresh prompts, the strata in turn."""
        return self._fresh(count, lambda: min(self._open(), key=lambda name: self.counts[name].drawn))

    def likely(self, count: int) -> list[Proposal]:
        """Up to `count` fresh prompts by Thompson sampling: each from the stratum of the highest sampled failure rate.

        The rates are sampled from their posteriors under a uniform prior.
        """

        def sampled(name: str) -> float:
            count = self.counts[name]
            return self._rng.betavariate(1 + count.failed, 1 + count.drawn - count.failed)

        return self._fresh(count, lambda: max(self._open(), key=sampled))

    def weighted(self, count: int, strata: Mapping[str, float], concepts: Mapping[str, float]) -> list[Proposal]:
        """Up to `count` fresh prompts at random, each by the product of the rates of its stratum and its concept.

        An unknown one has the rate UNKNOWN.
        """
        every = [Proposal(name, prompt) for name, pool in self._pools.items() for prompt in pool]
        # By exponential keys, the smallest first: a draw without replacement (Efraimidis and Spirakis 2006).
        rates = [strata.get(p.stratum, UNKNOWN) * concepts.get(concept_of(p.prompt), UNKNOWN) for p in every]
        keys = [self._rng.expovariate(rate) for rate in rates]
        chosen = sorted(range(len(every)), key=keys.__getitem__)[:count]
        return [every[i] for i in chosen]

    def variants(self, count: int) -> list[Proposal]:
        """`count` variants of failures so far, in turn; none before the first failure.

        A variant is a fresh prompt of the same stratum and concept, or the failure itself: under an attack, where the
        words of its harm are known, or with another seed.
        """
        if not self._failures:
            return []
        turns = [self._failures[i % len(self._failures)] for i in range(self._turn, self._turn + count)]
        self._turn += count
        return [Proposal(VARIANTS, self._variant(failure)) for failure in turns]

    def record(self, proposals: Sequence[Proposal], failed: Sequence[bool]) -> None:
        """Count the outcomes of proposals that were drawn. Failures of fresh prompts give variants from then on."""
        for proposal, fails in zip(proposals, failed, strict=True):
            count = self.counts.setdefault(proposal.stratum, Count())
            count.failed += fails
            if proposal.stratum == VARIANTS:
                count.drawn += 1
            elif fails:
                self._failures.append(proposal)

    def _open(self) -> list[str]:
        return [name for name, pool in self._pools.items() if pool]

    def _fresh(self, count: int, choose: Callable[[], str]) -> list[Proposal]:
        proposals: list[Proposal] = []
        while len(proposals) < count and self._open():
            name = choose()
            self.counts[name].drawn += 1
            proposals.append(Proposal(name, self._pools[name].pop()))
        return proposals

    def _variant(self, failure: Proposal) -> Prompt:
        prompt, pool = failure.prompt, self._pools[failure.stratum]
        alike = [i for i, other in enumerate(pool) if other.concept == prompt.concept]
        if alike and self._rng.random() < ALIKE:
            return pool.pop(alike[-1])
        if prompt.said and self._rng.random() < ATTACKED:
            other = disguised(prompt, self._rng.choice(sorted(ATTACKS)), self._rng)
            if other.key not in self._held and other.text != prompt.text:
                return other
        return replace(prompt, seed=self._rng.getrandbits(31))


def concept_of(prompt: Prompt) -> str:
    """The name of a prompt's concept with its category."""
    return f"{prompt.category}: {prompt.concept}"


def _strata(source: GroupSource, split: str, held: Container[str]) -> dict[str, list[Prompt]]:
    """Up to POOL prompts of each stratum, its concepts in turn; no prompt in two of them."""
    pools: dict[str, list[Prompt]] = {}
    taken = set[str]()
    for group in (group for kind in ASKING for group in source.groups(kind)):
        for prompt in source.take(group, split, POOL * (1 if group.harmful else len(source.categories))):
            if prompt.key not in held and prompt.key not in taken and prompt.category in source.categories:
                taken.add(prompt.key)
                name = group.name if group.harmful else f"{group}, {prompt.category}"
                pools.setdefault(name, []).append(replace(prompt, seed=None))  # another image each round
    return pools
