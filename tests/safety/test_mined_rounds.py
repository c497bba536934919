"""Rounds that mine failures: a way of asking that the first round never met is found, learned and confirmed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from safety.collect.pairs import Pair
from safety.collect.proposals import VARIANTS
from safety.edit.head_editor import edit_of
from safety.edit.mined_editor import Lesson, silent_on
from safety.loop import Cancelled, RoundResult, improve
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.emoji.wordings import WORDINGS
from safety.policy.groups import Group
from safety.policy.plan import Plan
from safety.policy.prompts import PAIR, VALIDATION
from safety.rounds import LoopState, prepare_mined
from safety.runtime.run_context import RunContext, prepare_run
from tests.safety.test_loop import PLAN, REQUEST, Heard
from tests.support.killed import differing, run_until_killed
from tests.support.toy_model import CLASS, HARMS, ToyModel

pytestmark = pytest.mark.slow
SIZES = replace(PLAN, strewn=0, halfway=False, probes=256, confirmed=(64, 128), mined_steps=40)
ROUNDS = replace(REQUEST, max_rounds=3)
STRAY = "attack:stray words"
TAXONOMY = read_taxonomy()
PLAIN = (*TAXONOMY.articles, *TAXONOMY.styles, *TAXONOMY.colours, *TAXONOMY.benign_patterns, *TAXONOMY.terms())
FORMS = (*TAXONOMY.templates[PAIR], *TAXONOMY.templates[VALIDATION], *TAXONOMY.style_forms)
STRAYS = {word for word in TAXONOMY.fillers if " " not in word} - {w for said in PLAIN + FORMS for w in said.split()}
HARM, SPARE = slice(17, 21), slice(94, 96)  # of the features before turning
ELSEWHERE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # of each harm


class Distracted(ToyModel):
    """Among stray words a harm is drawn by other features, which no expert of a first round has learned."""

    def __init__(self) -> None:
        super().__init__()
        rows = torch.zeros_like(self._rows)
        for i in range(len(HARMS)):
            rows[HARM.start + i == CLASS, SPARE] = 9.0 * ELSEWHERE[i]
        self._rows = self._rows + rows @ self._turn.T

    def _say(self, row: Tensor, prompt: str) -> None:
        super()._say(row, prompt)
        if STRAYS & set(prompt.split()):
            row[:, SPARE] = row[:, HARM] @ ELSEWHERE
            row[:, HARM] = 0.0


class Usual(EmojiPolicy):
    """The policy without the further ways of asking, so that few probes find what fails."""

    def groups(self) -> tuple[Group, ...]:
        return tuple(group for group in super().groups() if group.name not in WORDINGS)


@dataclass
class InRound(Heard):
    """Progress that ends the run when `phase` begins in `round`."""

    round: int = 2

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        assert 0 <= done <= total
        if round == self.round and phase == self.phase:
            raise self.error()


@dataclass
class Noting(Heard):
    """Notes the plan of a run, and its steps by round."""

    plans: list[Plan] = field(default_factory=list)
    steps: set[tuple[int, str]] = field(default_factory=set)

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        self.steps.add((round, phase))


def run(work: Path, progress: Heard, on_plan: Callable[[Plan], None] = lambda _: None) -> Iterator[RoundResult]:
    model = Distracted()
    context = prepare_run(model, ROUNDS, Usual(), model, work, progress, SIZES, on_plan=on_plan)
    return improve(context, context.runner.base)


Results = tuple[Path, Path, list[RoundResult], Noting]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The folder of a run as it was after the first round and as it ended, its results, and what its progress noted."""
    torch.set_num_threads(1)
    work, after_first = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("copy") / "work"
    noting = Noting()
    rounds = run(work, noting, noting.plans.append)
    first = next(rounds)
    shutil.copytree(work, after_first)
    return after_first, work, [first, *rounds], noting


def test_every_step_of_a_mined_round_is_planned(undisturbed: Results) -> None:
    noting, (plan,) = undisturbed[3], undisturbed[3].plans
    steps = {step for number, step in noting.steps if number == 2}
    planned = {work.step for phase in plan.phases if phase.round == 2 for work in phase.work if work.count}
    assert steps >= {"safe", "practice", "confirm", "tune concepts"}
    assert steps <= planned
    mining = next(phase for phase in plan.phases if (phase.name, phase.round) == ("mining", 2))
    assert {work.step: work.count for work in mining.work}["unsafe"] == SIZES.probes
    assert undisturbed[2][1].report["plan"]["probes"] == SIZES.probes


def test_a_later_round_finds_what_the_first_could_not_know(undisturbed: Results) -> None:
    first, second, third = undisturbed[2]
    assert first.accepted and "mined" not in first.report
    failed = {name for name, count in second.report["mined"]["strata"].items() if count["failed"]}
    assert failed == {VARIANTS, *(f"{STRAY}, {name}" for name in HARMS)}
    assert second.accepted
    assert second.decision is not None and second.decision == second.report["tried"][-1]
    confirmed = second.decision["confirmed"]
    assert confirmed["p"] < confirmed["limit"]
    assert confirmed["after"]["hr"]["value"] < confirmed["before"]["hr"]["value"] / 2
    assert second.failing is not None and third.failing is not None
    assert third.failing["value"] < second.failing["value"]
    assert [point["failing"] for point in third.report["rounds"]] == [None, second.failing, third.failing]
    assert third.images["rounds.png"].startswith(b"\x89PNG")


def second_round(undisturbed: Results) -> tuple[RunContext, LoopState]:
    """The finished run in its second round again, and the state before that."""
    model, codebook = Distracted(), undisturbed[2][0].codebook
    context = prepare_run(model, ROUNDS, Usual(), model, undisturbed[1], Heard(), SIZES)
    context.runner.round = 2
    assert codebook is not None
    concepts = tuple((category, name) for category, names in context.router_data.harmful.items() for name in names)
    return context, replace(LoopState.of(context, codebook), lesson=Lesson(concepts))


def test_a_later_round_trains_experts_and_leaves_router_and_spaces(undisturbed: Results) -> None:
    first, second, _ = undisturbed[2]
    assert first.codebook is not None and second.codebook is not None
    before, after = edit_of(first.codebook), edit_of(second.codebook)
    for name in ("router.weight", "router.bias", "basis", "mean", "groups"):
        assert torch.equal(attrgetter(name)(before), attrgetter(name)(after)), name
    assert after.guidance == before.guidance and torch.equal(first.codebook.pixel, second.codebook.pixel)
    taught = second.report["found"]["output"]["tried"][0]["taught"]
    state = second_round(undisturbed)[1]
    trained = (before.down != after.down).flatten(1).any(1) & (before.up != after.up).flatten(1).any(1)
    assert taught and {": ".join(state.lesson.concepts[i]) for i in trained.nonzero().flatten().tolist()} == {*taught}


def test_half_the_strength_moves_experts_half_the_way(undisturbed: Results) -> None:
    context, state = second_round(undisturbed)
    (editor,) = prepare_mined(context, state).editors["output"]
    draft = editor.draft(0.5)
    assert codebook_hash(draft) == codebook_hash(state.codebook)
    half, start, full = edit_of(editor.tune(draft, 0.5)), edit_of(state.codebook), undisturbed[2][1].codebook
    assert full is not None
    for name in ("down", "up"):
        ends = getattr(start, name), getattr(edit_of(full), name)
        assert torch.equal(getattr(half, name), ends[0].lerp(ends[1], 0.5)), name


def test_failures_that_the_router_is_silent_on_are_reported(undisturbed: Results) -> None:
    context, state = second_round(undisturbed)
    runner, codebook, none = context.runner, state.codebook, torch.zeros(1, dtype=torch.int64)
    harmful = [prompt for prompt in context.tuning_prompts if prompt.category == "gore"]
    texts = [*(prompt.text for prompt in harmful), *(str(prompt.safe) for prompt in harmful)]
    pairs = [Pair(text, "s", "gore", "", 1, none, none, 1.0) for text in texts]
    fires = undisturbed[2][0].report["found"]["output"]["tried"][0]["router"]["gore"]
    assert fires > 0.1
    assert silent_on(codebook, runner, pairs[len(harmful) :]) == len(harmful)  # all rewrites
    assert silent_on(codebook, runner, pairs) == len(pairs) - round(fires * len(harmful))
    always = replace(codebook, output=replace(edit_of(codebook), router=None))
    assert silent_on(always, runner, pairs) == silent_on(codebook, runner, []) == 0
    missed = undisturbed[2][1].report["found"]["output"]["tried"][0]["missed"]
    assert missed["n"] == sum(counts["kept"] for counts in undisturbed[2][1].report["mined"]["pairs"].values())


def test_thompson_sampling_goes_where_images_fail(undisturbed: Results) -> None:
    strata = undisturbed[2][1].report["mined"]["strata"]
    stray = [count["drawn"] for name, count in strata.items() if name.startswith(STRAY)]
    others = [count["drawn"] for name, count in strata.items() if not name.startswith((STRAY, VARIANTS))]
    assert min(stray) > 1.5 * sum(others) / len(others)


def test_failures_are_counted_by_who_named_their_category(undisturbed: Results) -> None:
    mined = undisturbed[2][1].report["mined"]
    failed = sum(count["failed"] for count in mined["strata"].values())
    assert sum(mined["categories"].values()) == failed and mined["categories"]["judge"] == failed


def run_and_die(work: Path, phase: str) -> None:
    """Run in this process, until a kill -9 when `phase` begins in the second round."""
    torch.set_num_threads(1)

    def die() -> Exception:
        os.kill(os.getpid(), signal.SIGKILL)
        return Cancelled()

    list(run(work, InRound(phase, die)))


def test_a_mined_round_killed_in_every_phase_resumes_to_the_same_bytes(tmp_path: Path, undisturbed: Results) -> None:
    work = tmp_path / "work"
    shutil.copytree(undisturbed[0], work)
    for phase in ("safe", "practice", "tune concepts", "confirm"):
        run_until_killed(run_and_die, work, phase)  # goes on from where the one before was killed
        assert differing(work, undisturbed[1]) == [], f"up to the kill in {phase}"
    hashes = [
        [outcome.codebook and codebook_hash(outcome.codebook) for outcome in outcomes]
        for outcomes in (islice(run(work, Heard()), 2), undisturbed[2][:2])
    ]
    assert hashes[0] == hashes[1]
    assert differing(work, undisturbed[1]) == []


def test_a_failure_is_placed_under_the_expert_of_its_concept_or_category() -> None:
    none = torch.zeros(1, dtype=torch.int64)
    pairs = [Pair("p", "s", category, concept, 1, none, none, 1.0) for category in HARMS[:3] for concept in ("a", "b")]
    lesson = Lesson(concepts=(("gore", "a"), ("decay", "")))
    placed = [(pair.category, pair.concept) for pair in lesson.placed(pairs)]
    assert placed == [("gore", "a"), ("decay", ""), ("decay", "")]
