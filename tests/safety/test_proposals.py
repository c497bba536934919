"""Proposals of prompts by stratum: nothing that a run measures on, nothing twice, and most of what fails."""

from __future__ import annotations

import random
from collections import Counter

from core.text import normalise
from safety.collect.proposals import VARIANTS, Proposals, concept_of
from safety.policy.attacks import ATTACKS, look_alike
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.group_source import GroupSource
from safety.policy.prompts import PAIR

POLICY = EmojiPolicy()


def proposals(held: frozenset[str] = frozenset(), categories: tuple[str, ...] = POLICY.categories) -> Proposals:
    return Proposals(GroupSource(POLICY, categories, 1), PAIR, held, random.Random(2))


def test_even_probes_go_through_all_strata_in_turn_and_none_comes_twice() -> None:
    source = proposals()
    batch = source.even(3 * len(source.counts))
    assert set(Counter(proposal.stratum for proposal in batch).values()) == {3}
    assert len({proposal.prompt.key for proposal in batch}) == len(batch)
    assert {"gore", "attack:misspelt, weapons", "language:de, decay"} <= source.counts.keys()


def test_no_prompt_that_a_run_measures_on_is_proposed() -> None:
    held = frozenset(proposal.prompt.key for proposal in proposals().even(400))
    source = proposals(held)
    fresh = source.even(400)
    source.record(fresh, [True] * len(fresh))
    every = [*fresh, *source.likely(400), *source.variants(400)]
    assert not held & {proposal.prompt.key for proposal in every}


def test_other_categories_than_the_chosen_ones_are_left_out() -> None:
    assert {p.prompt.category for p in proposals(categories=("weapons",)).even(200)} == {"weapons"}


def test_likely_probes_come_mostly_from_the_stratum_that_fails() -> None:
    source, failing = proposals(), "language:de, decay"
    for _ in range(6):
        batch = source.likely(32)
        source.record(batch, [proposal.stratum == failing for proposal in batch])
    others = [count.drawn for name, count in source.counts.items() if name != failing]
    assert source.counts[failing].drawn > 5 * sum(others) / len(others)
    assert source.counts[failing].failed == source.counts[failing].drawn


def test_variants_are_of_the_same_concepts_in_turn() -> None:
    source = proposals()
    assert source.variants(5) == []
    batch = source.even(20)
    source.record(batch, [i < 2 for i in range(20)])
    failed = {proposal.prompt.text: proposal.prompt for proposal in batch[:2]}
    variants = source.variants(60)
    assert {p.stratum for p in variants} == {VARIANTS}
    again = [p.prompt.seed for p in variants if p.prompt.text in failed]
    assert None not in again and len(set(again)) == len(again) > 5
    counts = Counter((p.prompt.category, p.prompt.concept) for p in variants)
    assert counts == dict.fromkeys(((p.category, p.concept) for p in failed.values()), 30)
    source.record(variants, [True] * 60)
    assert vars(source.counts[VARIANTS]) == {"drawn": 60, "failed": 60}


def test_an_attack_leaves_single_letters_as_they_are() -> None:
    rng = random.Random(0)
    for attack in ATTACKS.values():
        assert normalise(attack("p i s t o l", rng)) == "p i s t o l" or attack is look_alike


def test_the_same_seed_gives_the_same_proposals() -> None:
    assert proposals().likely(50) == proposals().likely(50)


def test_weighted_probes_follow_the_rates_of_strata_and_concepts() -> None:
    source = proposals()
    strata = dict.fromkeys(source.counts, 0.01) | {"gore": 0.9, "weapons": 0.9}
    del strata["language:de, decay"]  # as where a policy has none of it among the prompts for pairs
    rates = {concept_of(proposal.prompt): 0.01 for proposal in proposals().even(2000)}
    assert "weapons: knife" in rates
    batch = source.weighted(20, strata, rates | {"weapons: knife": 0.9})
    knives = [p for p in batch if (p.stratum, p.prompt.concept) == ("weapons", "knife")]
    assert len(knives) > 8 and len({p.prompt.key for p in batch}) == 20


def test_prompts_that_were_learned_from_come_last_and_pools_run_out() -> None:
    every = proposals().even(10_000)
    late = {proposal.prompt.key for proposal in random.Random(3).sample(every, len(every) // 2)}
    source = Proposals(GroupSource(POLICY, POLICY.categories, 1), PAIR, frozenset(), random.Random(2), late)
    batch = source.even(len(every))
    gore = [proposal.prompt.key in late for proposal in batch if proposal.stratum == "gore"]
    assert gore == sorted(gore) and 0 < sum(gore) < len(gore)
    assert source.even(5) == source.likely(5) == []
