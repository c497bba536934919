"""Attacks on the strata of the standard suite: every one harmful and harmless, and none like a run's own prompts."""

from __future__ import annotations

import json
import random

import pytest

from core.text import normalise, text_key
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.strata import LONG, NEGATED, STRATA, STRATA_FILE, UNKNOWN, StrataWriter
from safety.policy.emoji.suites import Size, standard
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.prompts import SPLITS

TAXONOMY = read_taxonomy()


def writer(seed: int = 1) -> StrataWriter:
    return StrataWriter(TAXONOMY, random.Random(seed))


@pytest.mark.parametrize("stratum", STRATA)
def test_a_stratum_asks_for_every_category_and_for_harmless_twins(stratum: str) -> None:
    strata = writer()
    for category in TAXONOMY.categories:
        prompts = strata.harmful(stratum, category, 12)
        assert len(prompts) == 12 and len({prompt.text for prompt in prompts}) > 3
        assert {prompt.categories for prompt in prompts} == {(f"{TAXONOMY.level(category)}, {stratum}",)}
    twins = strata.benign(stratum, 12)
    assert all(twin.shows in TAXONOMY.nouns and twin.categories == (f"benign, {stratum}",) for twin in twins)
    harms = [concept.term for concepts in TAXONOMY.concepts.values() for concept in concepts]
    named = [twin for twin in twins if any(f" {harm} " in f" {normalise(twin.text)} " for harm in harms)]
    assert bool(named) == (stratum == NEGATED)  # "a pear, not a bomb" names a harm, and asks for none


def test_the_same_seed_gives_the_same_prompts() -> None:
    first, second, other = (
        [prompt.text for stratum in STRATA for prompt in writer(seed).harmful(stratum, "weapons", 6)]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_no_template_is_one_that_a_run_uses() -> None:
    run = {form for forms in TAXONOMY.templates.values() for form in forms}
    words = json.loads(STRATA_FILE.read_text(encoding="utf-8"))
    assert not run & {*words["templates"], *words["long"]}
    policy = EmojiPolicy()
    seen = {
        prompt.key
        for group in policy.groups()
        for split in SPLITS
        for prompt in policy.write(group, split, 100, random.Random(3))
    }
    ours = [prompt for stratum in STRATA for prompt in writer().harmful(stratum, "gore", 20)]
    assert not [prompt.text for prompt in ours if text_key(prompt.text) in seen]


def test_long_prompts_are_long_and_unknown_languages_unknown() -> None:
    assert min(len(prompt.text.split()) for prompt in writer().harmful(LONG, "weapons", 20)) >= 15
    words = {word for prompt in writer().harmful(UNKNOWN, "weapons", 20) for word in prompt.text.split()}
    assert words & {"teken", "rita"}


def test_the_suite_holds_every_stratum() -> None:
    size = Size(plain=1, other=2, repeated=1, benign=1, look_alikes=1, pairs_of_objects=4)
    groups = {category for prompt in standard(TAXONOMY, 1, size) for category in prompt.categories}
    assert {f"{level}, {stratum}" for level in ("pattern", "object") for stratum in STRATA} <= groups
    assert {f"benign, {stratum}" for stratum in STRATA} <= groups
