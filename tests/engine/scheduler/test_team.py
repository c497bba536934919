"""The number of threads of a step, on machines simulated by what a step takes with each number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from engine.runner.step.team import Team

QUIET = {1: 1.3, 2: 1.0}
SHARED = {1: 1.5, 2: 6.0}  # a neighbour has one of the two cores
MANY = {16: 9.0, 8: 1.0, 1: 5.0}  # a neighbour has one of sixteen


@dataclass
class Steps:
    """A batch of equal steps."""

    rows: int = 2
    expected: float = 1.0


def draw(team: Team, steps: int, costs: dict[int, float], work: Callable[[int], int] = lambda step: 1) -> float:
    """Draw so many steps of 20 ms or a multiple; return the seconds."""
    chance, total = random.Random(1), 0.0
    for step in range(steps):
        seconds = 0.02 * costs[team.size] * work(step) * chance.uniform(0.9, 1.1)
        team.note(work(step), seconds)
        total += seconds
    return total


def test_a_team_follows_the_neighbours() -> None:
    team = Team(2)
    draw(team, 500, QUIET)
    draw(team, 60, SHARED)
    best = 0.02 * 1000 * SHARED[1]
    assert draw(team, 1000, SHARED) < 1.05 * best
    assert team.usual == 1
    draw(team, 400, QUIET)
    assert draw(team, 1000, QUIET) < 1.05 * 0.02 * 1000
    assert team.usual == 2


@pytest.mark.parametrize("work", [lambda step: 1, lambda step: 1 + step % 7 // 6, lambda step: 1 + step // 90 % 3])
def test_it_costs_little_where_all_threads_are_best(work: Callable[[int], int]) -> None:
    team = Team(2)
    all_threads = sum(0.02 * work(step) for step in range(5000))
    assert draw(team, 5000, QUIET, work) < 1.02 * all_threads


def test_it_finds_the_best_of_many_sizes() -> None:
    team = Team(16)
    assert team.size == 16 and team.sizes == [16, 8, 1]
    draw(team, 800, MANY)
    assert draw(team, 2000, MANY) < 1.1 * 0.02 * 2000


def test_a_step_of_more_tokens_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads lookahead reads guesses, and a step takes longer than one of one thread without: for more."""
    now, team, batch = 0.0, Team(2), Steps()
    monkeypatch.setattr("engine.runner.step.team.take_threads", lambda count: None)
    monkeypatch.setattr("engine.runner.step.team.time.perf_counter", lambda: now)
    for _ in range(1000):
        with team.step(batch):
            now += 0.010 if team.size == 1 else 0.013
            batch.expected = 1.0 if team.size == 1 else 1.7
    assert team.usual == 2


def test_trials_of_a_hopeless_number_cost_little() -> None:
    assert draw(Team(64), 10_000, {64: 1.0, 32: 1.9, 1: 40.0}) < 1.05 * 0.02 * 10_000


def test_a_step_is_compared_with_one_of_equal_work() -> None:
    """With one thread every step happens to have a hundredth of the work: no reason to draw with one thread."""
    team, sizes = Team(2), []
    for _ in range(2000):
        sizes.append(team.size)
        team.note(*((100, 0.02) if team.size == 2 else (1, 0.001)))
    assert sizes.count(2) >= 1000
    assert sizes[-20:].count(2) == 10  # the trial goes on until a step of equal work tells


def test_one_core_or_none_tried_leaves_nothing_to_try() -> None:
    for team in (Team(1), Team(4, tried=False)):
        assert len(team.sizes) == 1
        most = team.size
        for _ in range(2000):
            team.note(1, 1.0)
            assert team.size == most
