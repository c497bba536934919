"""The plan of a run and its pace: the real loop draws the images planned, and the time left is about right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from engine.model import ImageModel, ImageRequest
from engine.registry import load_model
from safety.evaluate.assessment import assess
from safety.gates.canaries import check_canaries
from safety.loop import improve
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.open_policy import OpenPolicy
from safety.policy.phases import ALL, DRAWN, PRICES
from safety.policy.plan import Plan, images_per_s, plan_job, rates_of
from safety.runtime.pace import Pace
from safety.runtime.run_context import prepare_run
from tests.safety.test_loop import Heard
from tests.safety.test_open_run import CONFIG, REQUEST
from tests.support.families.planted import Planted
from tests.support.tiny import build_tiny

Report = tuple[str, int, int, int]


@dataclass
class Listener(Heard):
    """Notes the plans and all reports of a run."""

    plans: list[Plan] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        super().report(phase, done, total, round)
        assert self.plans, "the plan comes before the first step"
        self.reports.append((phase, done, total, round))


class Counting(Planted):
    """Counts the images that are drawn."""

    drawn = 0

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        self.drawn += len(requests)
        return super().draw(requests, on_step)


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


@pytest.fixture(scope="module")
def run(janus: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Report], int]:
    """A whole run on a tiny Janus, with its test: plan, reports, and the images drawn."""
    policy, listener = OpenPolicy(), Listener()
    planted = Counting(janus, policy.terms())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safety.validation.ROUND_GATES", (check_canaries,))
        work = tmp_path_factory.mktemp("work")
        context = prepare_run(
            planted, REQUEST, policy, planted, work, listener, config=CONFIG, on_plan=listener.plans.append
        )
        (result,) = improve(context, context.runner.base)
        assert result.report["tried"]
        assess(context, context.runner.base, result.codebook or context.runner.base, planted)
    (plan,) = listener.plans
    return plan, listener.reports, planted.drawn


def test_steps_that_follow_from_sizes_alone_are_planned_exactly(run: tuple[Plan, list[Report], int]) -> None:
    plan, reports, _ = run
    planned, counts = Counter[str](), Counter[str]()
    for phase in plan.phases:
        planned.update({work.step: work.count for work in phase.work})
    for (step, *_), units in zip(reports, units_of(reports), strict=False):
        counts[step] += units
    sure = ("preflight", "benign", "canaries", "base", "rewrites", "unsafe", "safe", "contexts", "features")
    assert {step: planned[step] for step in sure} == {step: counts[step] for step in sure}


def test_planned_images_are_about_those_that_a_run_draws(run: tuple[Plan, list[Report], int]) -> None:
    plan, _, drawn = run
    assert plan.images == pytest.approx(drawn, rel=0.3)


def test_every_step_of_a_run_that_costs_time_is_in_its_plan(run: tuple[Plan, list[Report], int]) -> None:
    plan, reports, _ = run
    planned = {work.step for phase in plan.phases for work in phase.work}
    assert {step for step, *_ in reports} - planned == {"output space"}
    assert planned <= PRICES.keys() and planned >= DRAWN


def replay(
    plan: Plan, reports: Sequence[Report], cost: Callable[[str], float]
) -> list[tuple[float, Pace, float | None]]:
    """A run again, a unit of a step costing `cost` seconds: time, pace and seconds left after each report."""
    now, states = 0.0, list[tuple[float, Pace, float | None]]()
    pace = Pace(plan, clock=lambda: now)
    for report, units in zip(reports, (0, *units_of(reports)), strict=True):
        now += units * cost(reports[len(states) - 1][0])
        pace.report(*report)
        states.append((now, pace, pace.seconds_left))
    return states


def units_of(reports: Sequence[Report]) -> list[int]:
    """Units between each report and the next one, of the step of the first of them."""
    units = []
    for (step, before, whole, _), (later, done, total, _) in pairwise(reports):
        is_fit, repeats = step.startswith(("router", "tune")), step in ("decode", "contexts")
        if (step, whole) == (later, total) and done >= before and not (repeats and done == before):
            units.append(done - before)
        else:
            units.append(0 if is_fit else whole - before)
    return units


def test_after_a_tenth_of_its_time_a_run_knows_when_it_ends(run: tuple[Plan, list[Report], int]) -> None:
    """On a machine five times as slow as the reference, on which fits take another half as long."""
    plan, reports, _ = run
    slow = {step: 7.5 if step.startswith(("tune", "router")) else 5.0 for step in PRICES}

    def cost(step: str) -> float:
        prices = [phase.price_of(step) for phase in plan.phases if phase.has(step)]
        return slow.get(step, 0.0) * sum(prices) / max(1, len(prices))

    states = replay(plan, reports, cost)
    end = states[-1][0]
    later = [(now, left) for now, _, left in states if now >= end / 10]
    assert later and all(left is not None for _, left in later)
    assert max(abs(now + (left or 0.0) - end) for now, left in later) < 0.2 * end


def test_images_behind_a_run_only_grow_and_end_at_the_plan(run: tuple[Plan, list[Report], int]) -> None:
    plan, reports, _ = run
    pace = Pace(plan)
    done = [0]
    for report in reports:
        pace.report(*report)
        done.append(pace.images_done)
    assert done == sorted(done) and done[-1] <= plan.images
    pace.end()
    facts = pace.to_dict()
    assert facts["images_done"] >= plan.images - plan.phases[-1].images // 2  # what was not accepted is not tested
    assert pace.seconds_left == pytest.approx(0.0, abs=0.1)
    assert [row["phase"] for row in facts["phases"] if row["spent"] is None] == []


def test_a_run_that_goes_on_in_another_process_is_where_it_was(run: tuple[Plan, list[Report], int]) -> None:
    plan, reports, _ = run
    first = next(i for i, (step, *_) in enumerate(reports) if step == "validate")
    pace = Pace(plan)
    pace.report(*reports[first])
    assert pace.images_done == sum(phase.images for phase in plan.phases[:-2])


def test_a_later_run_begins_at_the_rates_of_an_earlier_one(run: tuple[Plan, list[Report], int]) -> None:
    plan, reports, _ = run
    *_, (end, pace, _) = replay(plan, reports, lambda step: 2.0 * PRICES.get(step, 0.0))
    assert Pace(plan).seconds_left is None and not Pace(plan).rates
    assert Pace(plan, pace.rates).seconds_left == pytest.approx(end, rel=0.2)


def test_a_speed_alone_prices_a_plan() -> None:
    plan = plan_job(OpenPolicy(), ("weapons",), {}, images=800)
    assert plan.seconds({}) is None and plan.to_dict({})["seconds"] is None
    one, two = (plan.seconds(rates_of(speed)) for speed in (10.0, 5.0))
    assert one is not None and two == pytest.approx(2 * one)
    assert images_per_s(rates_of(5.0)) == pytest.approx(5.0) and images_per_s({}) is None


def test_a_plan_follows_its_limits() -> None:
    def planned(images: int | None = None, minutes: int | None = None, rounds: int = 1, operator: int = 0) -> Plan:
        return plan_job(
            OpenPolicy(),
            ("weapons", "violence"),
            {ALL: 1.0},
            rounds=rounds,
            images=images,
            minutes=minutes,
            operator=operator,
        )

    assert planned(images=500).images < planned(images=3000).images < planned().images
    assert planned(minutes=1).images < planned(minutes=5).images
    steps = Counter(work.step for phase in planned(images=500).phases for work in phase.work if work.count)
    assert "sketches" not in steps  # too small for a halfway probe
    rounds = planned(images=500, rounds=3)
    assert [phase.round for phase in rounds.phases if phase.name in ("pairs", "mining")] == [1, 2, 3]
    assert sum(phase.name == "start" for phase in rounds.phases) == 1
    assert rounds.without_test().images == rounds.images - rounds.phases[-1].images
    emoji = [
        plan_job(EmojiPolicy(), ("gore",), {}, images=500, edits=edits) for edits in (("pixel", "output"), ("output",))
    ]
    assert emoji[0].images > emoji[1].images, "strengths of the pixel table are tried where it can be edited"
    assert planned(images=500, operator=50).images == planned(images=500).images + 100
