"""Rewrites: the model's first sound answer, judged by itself where it can; else the policy's; else none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import pytest

from core.errors import BadInput
from engine.model import ImageModel, TextVerdict
from safety.collect.rewrites import ATTEMPTS, Rewrite, find_rewrites
from safety.policy.adult_only import AdultOnly
from safety.policy.prompts import Prompt
from tests.support.scripted import StillModel

SOUND = TextVerdict(harmful=0.1, nll=2.0)


class Writer(StillModel):
    """Answers each prompt with its script, attempt by attempt; verdicts by text, SOUND for all others."""

    def __init__(self, answers: Sequence[str], verdicts: Mapping[str, TextVerdict] | None = None) -> None:
        self.facts = replace(StillModel.facts, judges_texts=verdicts is not None)
        self._answers, self._verdicts = answers, verdicts or {}
        self.attempts: list[tuple[int, int]] = []  # number, prompts

    def check_prompt(self, prompt: str) -> None:
        if len(prompt) > 60:
            raise BadInput("prompt", prompt, "shorter")

    def rewrite(self, prompts: Sequence[str], attempt: int = 0) -> list[str]:
        self.attempts.append((attempt, len(prompts)))
        return [prompt if prompt == "kept" else self._answers[attempt] for prompt in prompts]

    def judge_texts(self, texts: Sequence[str]) -> list[TextVerdict]:
        return [self._verdicts.get(text, SOUND) for text in texts]


def found(model: Writer, *prompts: Prompt, terms: Sequence[str] = ("gun",)) -> list[Rewrite | None]:
    return find_rewrites(cast(ImageModel, model), prompts, terms)


KNOWN = Prompt("a red gun on a table", "weapons", "gun", "a red cup on a table", said="gun")
OPEN = Prompt("a man holds a gun", "weapons", "", None)


def test_the_model_s_own_rewrite_comes_before_the_policy_s() -> None:
    assert found(Writer(["a red spoon on a table"]), KNOWN) == [Rewrite("a red spoon on a table")]


def test_a_rewrite_that_leaves_nothing_of_a_bare_prompt_is_none() -> None:
    assert found(Writer([" "] * ATTEMPTS, verdicts={}), Prompt("gun", "weapons", "gun", None, said="gun")) == [None]


def test_a_model_that_does_not_rewrite_is_asked_nothing() -> None:
    model = Writer(["a red spoon on a table"])
    model.facts = replace(model.facts, rewrites=False)
    assert found(model, KNOWN, OPEN) == [Rewrite("a red cup on a table", by_policy=True), None]
    assert not model.attempts


@pytest.mark.parametrize(
    "answer",
    ["a red gun on a table", "a red gun on a chair", "a blue spoon on the floor", "a red spoon " + "very " * 60],
)
def test_the_policy_s_stands_in_for_an_answer_that_is_not_sound(answer: str) -> None:
    assert found(Writer([answer]), KNOWN) == [Rewrite("a red cup on a table", by_policy=True)]


def test_a_rewrite_is_of_adults_alone_where_the_prompt_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safety.collect.rewrites.RULE", AdultOnly(stems=("swimm",)))
    prompt = Prompt("a man who is swimming", "nudity", "", "a man in the water", said="swimming")
    policy = [Rewrite("a man in the water", by_policy=True)]
    assert found(Writer(["a boy who is swimming"]), replace(prompt, said="")) == policy
    assert found(Writer(["a man who is resting"]), prompt) == [Rewrite("a man who is resting")]


def test_without_either_there_is_none() -> None:
    assert found(Writer(["something else entirely, and much longer"]), OPEN) == [None]
    assert found(Writer(["a gun"]), replace(KNOWN, safe="a red gun on a shelf")) == [None]


def test_a_model_that_cannot_judge_texts_answers_once() -> None:
    model = Writer(["a gun", "a man holds a cup"])
    assert found(model, OPEN) == [None] and model.attempts == [(0, 1)]


BAD = {"harmful": TextVerdict(0.9, 2.0), "unlikely": TextVerdict(0.1, 2.0 + 0.41)}  # e ** 0.41 = 1.507


@pytest.mark.parametrize("fault", BAD)
def test_an_answer_that_the_model_finds_harmful_or_unlikely_is_written_anew(fault: str) -> None:
    model = Writer(["a man holds a blade", "a man holds a cup"], {"a man holds a blade": BAD[fault]})
    kept = Prompt("kept", "weapons", "", "kept it")
    assert found(model, OPEN, kept) == [Rewrite("a man holds a cup"), Rewrite("kept it", by_policy=True)]
    assert model.attempts == [(0, 2), (1, 2), (2, 1)]


def test_three_bad_answers_are_enough() -> None:
    bad = {f"a man holds a {what}": BAD["harmful"] for what in "xyz"}
    model = Writer(list(bad), bad)
    assert found(model, OPEN) == [None] and len(model.attempts) == ATTEMPTS == 3


def test_an_answer_may_be_as_unlikely_as_half_more_than_its_prompt() -> None:
    verdicts = {OPEN.text: TextVerdict(0.9, 3.0), "a man holds a cup": TextVerdict(0.5, 3.4)}
    assert found(Writer(["a man holds a cup"], verdicts), OPEN) == [Rewrite("a man holds a cup")]
