"""Policies that write prompts by themselves: today's emoji prompts to the letter, and the open policy's grammar."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.errors import BadInput
from safety.collect.rewrites import is_one_span
from safety.config import LoopConfig
from safety.policy.adult_only import AdultOnly
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.open_policy import OpenPolicy
from safety.policy.policy import HARMLESS, Policy, refuse_unable
from safety.policy.prompts import PAIR, SPLITS, TEST, VALIDATION, Prompt, mentions
from safety.request import ImproveRequest
from safety.runtime.run_prompts import write_prompts
from tests.support.scripted import StillModel
from tests.support.toy_model import ToyModel

ROUNDS = 2
DEFAULT_JOB = "563ea10e79bd36b912874857a1b92744d06ca7e5dd8a204bebadf750b3651f82"


def texts(prompts: Sequence[Prompt]) -> list[tuple[str | None, ...]]:
    return [(prompt.text, prompt.category, prompt.concept, prompt.safe, prompt.said) for prompt in prompts]


def test_the_default_job_s_prompts_stay_as_they_are() -> None:
    run = write_prompts(ToyModel(), ImproveRequest(None, None, ROUNDS, 1), EmojiPolicy(), LoopConfig())
    parts = [
        run.validation.prompts,
        run.heldout.prompts,
        *run.router.values(),
        run.router_benign,
        *(prompts for one in run.pairs for prompts in one.values()),
    ]
    text = json.dumps([texts(part) for part in parts], ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == DEFAULT_JOB


@pytest.mark.parametrize("policy", [OpenPolicy(), EmojiPolicy()], ids=lambda policy: policy.name)
def test_groups_have_distinct_prompts_in_disjoint_splits(policy: Policy) -> None:
    places: dict[str, str] = {}
    for group in policy.groups():
        for split, count in zip(SPLITS, (200, 50, 75), strict=True):
            prompts = policy.write(group, split, count, random.Random(f"{group}/{split}"))
            assert len({prompt.key for prompt in prompts}) == len(prompts) == count
            assert all((prompt.category == "none") == (group.kind in HARMLESS) for prompt in prompts)
            assert {places.setdefault(prompt.key, split) for prompt in prompts} == {split}
            again = policy.write(group, split, count, random.Random(f"{group}/{split}"))
            assert texts(again) == texts(prompts)


def test_groups_are_named_by_kind_and_name() -> None:
    assert str(Group(GroupKind.LOOK_ALIKE, "weapons")) == "look_alike:weapons"
    assert str(BENIGN) == "benign"
    assert {"gore", "attack:synonym", "language:ru", "benign:de"} <= set(map(str, EmojiPolicy().groups()))
    assert not EmojiPolicy().write(Group(GroupKind.LANGUAGE, "xx"), PAIR, 5, random.Random(1))
    assert not [group for group in OpenPolicy().groups() if group.kind is GroupKind.LANGUAGE]


def test_the_emoji_policy_gives_what_the_writer_gives() -> None:
    taxonomy = read_taxonomy()
    writer = PromptWriter(taxonomy, random.Random(5))
    policy, rng = EmojiPolicy(), random.Random(5)
    assert texts(policy.write(Group(GroupKind.CATEGORY, "gore"), PAIR, 60, rng)) == texts(
        writer.harmful("gore", PAIR, 60)
    )
    assert policy.categories == taxonomy.categories and policy.terms() == taxonomy.terms()
    attack = policy.write(Group(GroupKind.ATTACK, "look-alike letters"), VALIDATION, 40, random.Random(1))
    assert Counter(prompt.category for prompt in attack) == dict.fromkeys(policy.categories, 10)
    assert all(re.search("[\u0430-\u044f]", prompt.said) for prompt in attack if prompt.category == "gore")
    stray = policy.write(Group(GroupKind.BENIGN, "stray words"), PAIR, 50, random.Random(1))
    assert sum(prompt.said in prompt.text for prompt in stray) == 50 and all(prompt.shows for prompt in stray)


def test_the_open_policy_has_enough_for_a_run() -> None:
    policy, rng = OpenPolicy(), random.Random(3)
    for category in policy.categories:
        for split, count in ((PAIR, 600), (VALIDATION, 200), (TEST, 200)):
            assert len(policy.write(Group(GroupKind.CATEGORY, category), split, count, rng)) == count
    for split, count in ((PAIR, 540), (VALIDATION, 90), (TEST, 120)):
        prompts = policy.write(BENIGN, split, count, rng)
        assert len(prompts) == count and len({prompt.concept for prompt in prompts}) > 60


@pytest.mark.parametrize("category", OpenPolicy().categories)
def test_open_rewrites_change_one_span_and_hold_no_term(category: str) -> None:
    policy = OpenPolicy()
    prompts = policy.write(Group(GroupKind.CATEGORY, category), PAIR, 10_000, random.Random(1))
    assert {prompt.concept for prompt in prompts} == set(policy.concepts(category))
    for prompt in prompts:
        assert is_one_span(prompt, prompt.rewrite), prompt
        assert prompt.said in prompt.text and prompt.shows == prompt.concept
        assert any(mentions(prompt.text, term) for term in policy.terms()), prompt.text
        assert not any(mentions(prompt.rewrite, term) for term in policy.terms()), prompt.rewrite


def test_open_attacks_hide_the_harmful_word() -> None:
    policy = OpenPolicy()
    for way in ("misspelt", "look-alike letters", "taken apart"):
        for prompt in policy.write(Group(GroupKind.ATTACK, way), TEST, 200, random.Random(1)):
            assert prompt.said in prompt.text and prompt.said != prompt.concept and prompt.concept not in prompt.text
            assert is_one_span(prompt, prompt.rewrite) or way == "taken apart"


def test_what_the_open_policy_says_of_nudity_is_of_adults() -> None:
    policy = OpenPolicy()
    for group in policy.groups():
        for split in SPLITS:
            for prompt in policy.write(group, split, 150, random.Random(1)):
                assert not AdultOnly().refuses([group.name, prompt.category], [prompt.text, prompt.rewrite])


class Unwritten(OpenPolicy):
    """Its violence has no safe prompts."""

    def write(self, group: Group, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        prompts = super().write(group, split, count, rng)
        return [replace(prompt, safe=None) for prompt in prompts] if group.name == "violence" else prompts


def test_a_run_that_the_model_cannot_make_is_refused_by_name() -> None:
    able, categories = StillModel.facts, ("weapons", "violence")
    refuse_unable(able, Unwritten(), categories, ["a prompt"])
    unable = replace(able, rewrites=False)
    refuse_unable(unable, OpenPolicy(), categories, [])
    with pytest.raises(BadInput, match=r"policy.*none for violence.*still does not rewrite prompts"):
        refuse_unable(unable, Unwritten(), categories, [])
    with pytest.raises(BadInput, match=r"^prompts.*still does not rewrite prompts"):
        refuse_unable(unable, OpenPolicy(), categories, ["a prompt"])
    with pytest.raises(BadInput, match=r"^model.*a model whose image head can be edited"):
        refuse_unable(replace(able, edits=("pixel",)), OpenPolicy(), categories, [])
