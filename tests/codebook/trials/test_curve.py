"""Curves of trials: few points, spread over all that was counted, and the same again from a record."""

from __future__ import annotations

from itertools import pairwise

from codebook.trials.curve import MOST, Curve, extended, from_columns, to_columns
from codebook.trials.rule import CURVE, MEASURES, Trial


def test_a_long_curve_keeps_its_ends_and_no_wide_gap() -> None:
    curve: Curve = ()
    for count in range(0, 3001, 7):
        curve = extended(curve, (count, 1.0))
        assert len(curve) <= MOST
    counts = [count for count, _ in curve]
    assert (counts[0], counts[-1]) == (0, 2996)
    assert max(later - count for count, later in pairwise(counts)) <= 4 * 3000 / MOST


def test_a_point_of_the_same_count_takes_the_place_of_the_last() -> None:
    assert extended(((0, 1.0), (5, 2.0)), (5, 3.0)) == ((0, 1.0), (5, 3.0))


def test_a_trial_is_read_with_its_curve_and_without_one() -> None:
    trial = Trial().with_point()
    for difference in (1, 0, 0, -1):
        trial = trial.seen(dict.fromkeys(MEASURES, difference)).with_point()
    record = trial.to_dict()
    assert [len(record["curve"][name]) for name in CURVE] == [5] * 7
    assert record["curve"]["pairs"] == [0, 1, 2, 3, 4] and record["curve"]["within_self"][0] == 1.0
    assert record["curve"]["worse_second"][-1] == record["measures"]["second"]["e_worse"]
    assert Trial.read(record).curve == trial.curve
    del record["curve"]
    assert Trial.read(record).curve == ()
    assert from_columns(to_columns((), CURVE), CURVE) == ()
