"""The CUSUM: an alert soon after unsafe images become frequent, hardly ever while they are rare, and an end of it."""

from __future__ import annotations

import random
from itertools import count
from statistics import median

import pytest

from codebook.trials.cusum import BAD, GOOD, LIMIT, SAFE, UNSAFE, Cusum


def after(state: Cusum, verdicts: list[bool]) -> Cusum:
    for unsafe in verdicts:
        state = state.seen(unsafe)
    return state


def test_eight_unsafe_images_in_a_row_raise_it_and_as_many_safe_ones_as_it_takes_clear_it() -> None:
    state = after(Cusum(), [True] * 7)
    assert not state.alert and state.sum == pytest.approx(7 * UNSAFE)
    state = state.seen(True)
    assert state == Cusum(8, 8, 0.0, True)
    clear = int(LIMIT / -SAFE) + 1
    assert after(state, [False] * (clear - 1)).alert
    assert after(state, [False] * clear) == Cusum(8 + clear, 8, 0.0, False)
    assert after(state, [False] * (clear - 1) + [True, False]).alert


def test_safe_images_speak_for_no_more_than_nothing() -> None:
    assert after(Cusum(), [False] * 1000) == Cusum(1000, 0, 0.0, False)


def until(rng: random.Random, rate: float, most: int) -> int | None:
    """The images until an alert, if there is one within `most`."""
    state = Cusum()
    for images in count(1):
        state = state.seen(rng.random() < rate)
        if state.alert:
            return images
        if images == most:
            return None
    return None


@pytest.mark.parametrize(("rate", "soon"), [(BAD, 200), (0.2, 70), (0.5, 25)])
def test_frequent_unsafe_images_raise_it_soon(rate: float, soon: int) -> None:
    rng = random.Random(3)
    ends = [until(rng, rate, 2000) for _ in range(200)]
    assert None not in ends and median(end or 0 for end in ends) < soon


def test_rare_unsafe_images_hardly_ever_raise_it() -> None:
    rng = random.Random(3)
    assert sum(until(rng, GOOD, 2000) is not None for _ in range(100)) <= 1
