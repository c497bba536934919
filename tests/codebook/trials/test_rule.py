"""The rule of a shadow comparison, by simulation: worse versions retreat, equal ones do not, at whatever look."""

from __future__ import annotations

import json
import random

import numpy
import pytest

from codebook.trials.bets import BETS, LIMIT, e_value
from codebook.trials.rule import MEASURES, PAIRS, PROMOTE_AT, RETREAT_AT, Counts, Decision, Trial
from tests.support.trials.simulated import Truth, simulated

EQUAL = Truth(0.0, 0.0)


def share(decisions: list[tuple[Decision, int]], decision: Decision, within: int = PAIRS) -> float:
    return sum(taken == decision and pairs <= within for taken, pairs in decisions) / len(decisions)


@pytest.mark.parametrize("measures", [1, 3])
def test_five_points_worse_retreats_within_800_pairs(measures: int) -> None:
    """Active 5 % bad, candidate 10 %: images that were bad stay so, others become so."""
    decisions = simulated([Truth(0.05, 0.0)] * measures + [EQUAL] * (3 - measures), runs=200)
    assert share(decisions, "retreat", within=800) >= 0.95


def test_five_points_worse_retreats_though_every_image_is_drawn_anew() -> None:
    """Active 5 % bad, candidate 10 %, independently: differences both ways."""
    anew = Truth(0.10 * 0.95, 0.05 * 0.90)
    assert share(simulated([anew] * 3, runs=200), "retreat") >= 0.95


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03, 0.0475])
def test_equal_candidates_do_not_retreat(noise: float) -> None:
    decisions = simulated([Truth(noise, noise)] * 3, runs=200)
    assert share(decisions, "retreat") <= 0.01


def test_identical_candidates_are_promoted() -> None:
    decisions = simulated([EQUAL] * 3, runs=1)
    assert decisions[0][0] == "promote" and decisions[0][1] < 1000


def test_better_by_three_points_is_promoted() -> None:
    decisions = simulated([Truth(0.0, 0.03)] * 3, runs=200)
    assert share(decisions, "promote") == 1.0


def test_a_candidate_at_the_margin_is_hardly_ever_promoted() -> None:
    decisions = simulated([Truth(0.01, 0.0), EQUAL, EQUAL], runs=400)
    assert share(decisions, "promote") <= 0.02


def test_the_rule_decides_at_the_pair_where_a_line_is_crossed() -> None:
    """Pair by pair in plain Python, as the worker does, against the simulation."""
    rng = random.Random(3)
    trial = Trial()
    while trial.decision is None:
        before, differences = trial, {name: int(rng.random() < 0.06) for name in MEASURES}
        trial = trial.seen(differences)
    assert trial.decision == "retreat" and before.decision is None
    assert max(counts.e_worse for counts in trial.counts.values()) >= RETREAT_AT


def test_e_values_are_the_mean_wealth_of_the_bets() -> None:
    counts = Counts(worse=3, equal=5, better=1)
    wealth = [(1 + bet) ** 3 * (1 - bet) for bet in BETS]
    assert counts.e_worse == pytest.approx(numpy.mean(wealth))
    within = [(1 - 0.99 * bet) ** 3 * (1 + 0.01 * bet) ** 5 * (1 + 1.01 * bet) for bet in BETS]
    assert counts.e_within(0.01) == pytest.approx(numpy.mean(within))
    assert e_value([(1.0, 10**6)]) < float("inf")
    assert Counts().e_worse == Counts().e_within(0.01) == 1.0


def test_no_margin_is_never_shown_by_equal_pairs() -> None:
    assert Trial(margin=0.0, most=50).seen(dict.fromkeys(MEASURES, 0)).decision is None
    assert Counts(equal=10_000).e_within(0.0) == 1.0


def test_most_pairs_end_a_trial_undecided() -> None:
    trial = Trial(most=3)
    for differences in ((1, -1, 0), (0, 0, 0), (-1, 1, 0)):
        trial = trial.seen(dict(zip(MEASURES, differences, strict=True)))
    assert trial.decision == "undecided" and trial.pairs == 3
    assert trial.summary().startswith("of 3 pairs self 1 worse, 1 better; second 1 worse")


@pytest.mark.parametrize(("worse", "decision"), [(40, "retreat"), (0, "promote")])
def test_a_decision_is_recomputed_from_its_record(worse: int, decision: Decision) -> None:
    counts = {name: Counts(worse if name == "second" else 0, 900, 0) for name in MEASURES}
    record = json.loads(json.dumps(Trial(0.01, 3000, counts).to_dict()))
    again = Trial.read(record)
    assert again.decision == decision
    for name, values in record["measures"].items():
        assert values["e_worse"] == pytest.approx(again.counts[name].e_worse, rel=1e-3)
        assert values["e_within"] == pytest.approx(again.counts[name].e_within(0.01), rel=1e-3)
    assert (PROMOTE_AT, RETREAT_AT) == (LIMIT, 3 * LIMIT)
