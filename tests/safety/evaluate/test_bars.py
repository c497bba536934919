"""Bars of a suite: differences with their intervals, and the number of prompts that a bar needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safety.evaluate.bars import MARGIN, difference, paired, prompts_needed, ways
from safety.metrics.rates import Rate, Rates
from safety.policy.emoji.strata import STRATA
from safety.policy.emoji.suites import BEST_OF, Size, standard
from safety.policy.emoji.taxonomy import read_taxonomy


def rates(harmful: int, n: int) -> dict[str, Any]:
    flags = torch.arange(n) < harmful
    return Rates.of(flags, torch.zeros(n, dtype=torch.bool)).to_dict()


def test_a_way_is_compared_with_the_plain_prompts_of_its_levels() -> None:
    categories = {
        "pattern": rates(8, 260),
        "object": rates(12, 260),
        "pattern, de": rates(3, 120),
        "object, de": rates(5, 120),
        "pattern, negated": rates(40, 120),
        "object, synonym": rates(9, 40),
        "pattern, long": rates(6, 60),
        "object, best of 5": rates(90, 100),
        "benign": rates(0, 9),
        "benign, de": rates(0, 9),
        "look-alikes": rates(0, 9),
    }
    bars = ways(categories, {"benign", "benign, de", "look-alikes", "object, best of 5"})
    assert {way: (bar["harmful"]["n"], bar["plain"]["n"], bar["verdict"]) for way, bar in bars.items()} == {
        "de": (240, 520, "met"),
        "negated": (120, 260, "missed"),
        "synonym": (40, 260, "missed"),
        "long": (60, 260, "open"),
    }
    assert bars["de"]["difference"] == pytest.approx(8 / 240 - 20 / 520)
    assert bars["de"]["low"] < bars["de"]["difference"] < bars["de"]["high"] <= MARGIN


@pytest.mark.parametrize(("percent", "plain"), [(4, 520), (5, 520), (10, 2000)])
def test_the_prompts_needed_show_a_bar_four_times_in_five(percent: int, plain: int) -> None:
    needed = prompts_needed(percent / 100, Rate(percent * plain // 100, plain))
    assert needed is not None

    def shown(n: int) -> float:
        sides = [torch.binomial(torch.full((600,), float(k)), torch.full((600,), percent / 100)) for k in (n, plain)]
        pairs = zip(*(side.int().tolist() for side in sides), strict=True)
        return sum(difference(Rate(way, n), Rate(base, plain))[2] <= MARGIN for way, base in pairs) / 600

    torch.manual_seed(1)
    assert 0.7 < shown(needed) < 0.9
    assert shown(needed // 3) < 0.6


def test_no_number_of_prompts_makes_up_for_too_few_plain_ones() -> None:
    assert prompts_needed(0.1, Rate(10, 100)) is None


def test_a_paired_change_counts_prompts_that_moved() -> None:
    before = torch.arange(1000) < 900
    after = before.clone()
    after[:20], after[950:960] = False, True
    change = paired(before, after)
    assert (change["won"], change["lost"], change["n"], change["value"]) == (10, 20, 1000, -0.01)
    assert -0.022 < change["low"] < -0.01 < change["high"] < 0.002


def test_every_way_of_the_standard_suite_has_the_prompts_that_its_bar_needs() -> None:
    size = Size()
    prompts = standard(read_taxonomy(), 1, size)
    texts: dict[str, set[str]] = {}
    for prompt in prompts:
        level, comma, way = prompt.categories[0].partition(", ")
        if comma and way != BEST_OF and level != "benign":
            texts.setdefault(way, set()).add(prompt.text)
    plain = Rate(26, 4 * size.plain)  # one in twenty: as harmful as what ships
    needed = prompts_needed(plain.value, plain)
    assert needed is not None and set(STRATA) < texts.keys()
    assert {way for way, group in texts.items() if len(group) < needed} == set()
