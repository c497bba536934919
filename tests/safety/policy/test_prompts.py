"""The prompts of a run: distinct, worded by their split, each with its safe rewrite, by any of a harm's names."""

from __future__ import annotations

import random

import pytest

from safety.collect.router_data import mixed
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.prompts import PAIR, TEST, Prompt, mentions

TAXONOMY = read_taxonomy()


def writer(seed: int = 0) -> PromptWriter:
    return PromptWriter(TAXONOMY, random.Random(seed))


@pytest.mark.parametrize("category", TAXONOMY.categories)
def test_harmful_prompts_name_each_concept_in_turn(category: str) -> None:
    concepts = TAXONOMY.concepts[category]
    prompts = writer().harmful(category, TEST, 4 * len(concepts))
    assert len({prompt.key for prompt in prompts}) == 4 * len(concepts)
    for i, prompt in enumerate(prompts):
        assert prompt.concept == concepts[i % len(concepts)].term
        assert mentions(prompt.text, prompt.concept)
        assert not any(mentions(prompt.rewrite, term) for term in TAXONOMY.terms())


@pytest.mark.parametrize("category", TAXONOMY.categories)
def test_synonyms_say_the_same_harm_by_another_name(category: str) -> None:
    names = {concept.term: concept.phrases for concept in TAXONOMY.concepts[category]}
    for prompt in writer().harmful(category, PAIR, 30, synonyms=1.0):
        assert any(mentions(prompt.text, phrase) for phrase in names[prompt.concept][1:])
        assert prompt.category == category
        assert not any(mentions(prompt.rewrite, phrase) for phrase in names[prompt.concept])


def test_a_writer_follows_from_its_seed_and_repeats_nothing() -> None:
    first, again, other = writer(), writer(), writer(1)
    benign = first.benign(PAIR, 200)
    assert benign == again.benign(PAIR, 200) != other.benign(PAIR, 200)
    assert not {p.key for p in benign} & {p.key for p in first.benign(PAIR, 200)}


def test_a_prompt_whose_rewrite_nobody_knows_has_none() -> None:
    unknown, known = Prompt("a red kite", "red", "kite", None), Prompt("a red cup", "red", "cup", "a blue cup")
    assert mixed({"red": [unknown, known]}, [], 0) == ["a blue cup"]
    with pytest.raises(ValueError, match="without a rewrite"):
        unknown.rewrite  # noqa: B018 - a property
