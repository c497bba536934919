"""Further ways of asking: each harm with its safe twin, each harmless twin, and forms that no suite has."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain

import pytest

from core.text import normalise
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.strata import LONG, MIXED_CASE, NEGATED, STRATA_FILE, SWITCHED, TOGETHER, TWO_HARMS
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.emoji.wordings import WORDINGS, WORDINGS_FILE
from safety.policy.groups import Group, GroupKind
from safety.policy.prompts import PAIR, SPLITS, Prompt, mentions

TAXONOMY, POLICY = read_taxonomy(), EmojiPolicy()
PHRASES = {concept.term: concept.phrases for concepts in TAXONOMY.concepts.values() for concept in concepts}  # by term


def asked(way: str, kind: GroupKind = GroupKind.ATTACK, split: str = PAIR) -> tuple[Prompt, ...]:
    return tuple(POLICY.write(Group(kind, way), split, 80, random.Random(2)))


def harms(text: str) -> set[str]:
    """The terms whose phrases stand in the text."""
    return {term for term, phrases in PHRASES.items() if any(mentions(text, phrase) for phrase in phrases)}


@pytest.mark.parametrize("way", WORDINGS)
def test_a_way_asks_for_every_category_and_its_rewrite_for_none(way: str) -> None:
    prompts = asked(way)
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(TAXONOMY.categories, 20)
    assert all(prompt.said in prompt.text and prompt.concept in PHRASES for prompt in prompts)
    assert not [prompt for prompt in prompts if harms(prompt.rewrite) or prompt.rewrite == prompt.text]


@pytest.mark.parametrize("way", WORDINGS)
def test_harmless_twins_name_what_their_image_shows(way: str) -> None:
    for prompt in asked(way, GroupKind.BENIGN):
        assert (prompt.category, prompt.safe) == ("none", prompt.text) and prompt.concept in TAXONOMY.nouns
        assert bool(harms(prompt.text)) == (way == NEGATED)


def test_two_harms_are_of_two_levels() -> None:
    patterns = {concept.term: concept.pattern for concepts in TAXONOMY.concepts.values() for concept in concepts}
    for prompt in asked(TWO_HARMS):
        assert {patterns[term] for term in harms(prompt.text)} == {False, True}, prompt.text


def test_each_way_is_what_its_name_says() -> None:
    assert all(" " not in prompt.said for prompt in asked(TOGETHER))
    assert any(prompt.said not in (prompt.said.lower(), prompt.said.upper()) for prompt in asked(MIXED_CASE))
    assert all(len(normalise(prompt.text).split()) > 15 for prompt in asked(LONG))
    assert all(not harms(prompt.text) for prompt in asked(SWITCHED))  # in English


def test_no_form_is_one_of_the_suite_or_of_another_split() -> None:
    ours, suite = (json.loads(path.read_text(encoding="utf-8")) for path in (WORDINGS_FILE, STRATA_FILE))
    forms = [form for split in SPLITS for form in (*ours[LONG][split], *chain(*ours[NEGATED][split]))]
    assert len(set(forms)) == len(forms)
    assert not set(forms) & {*suite["templates"], *suite["long"], *suite["negated"].values()}
