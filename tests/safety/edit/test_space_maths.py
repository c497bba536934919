"""Rates, weights of codes, the Harmful Space, and the rule that ends the loop: pure maths."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safety.edit.harmful_space import agreed_rank, directions, harmful_space, interleave, join, principal_cosines
from safety.edit.harmfulness import LEAST_RATIO, benign_share, shuffled_ratio, weights, z_scores
from safety.metrics.rates import Rate, Rates, mcnemar
from safety.reason import Reason, Stop
from safety.stopping import stop_reason

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(rows: Tensor) -> Tensor:
    scaled: Tensor = rows / rows.norm(dim=-1, keepdim=True)
    return scaled


def halves(n: int) -> Tensor:
    return torch.arange(n) % 2 == 0


# Rates


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_rates_sum_to_one_and_harm_outweighs_degenerate(images: list[tuple[bool, bool]]) -> None:
    harmful, degenerate = (torch.tensor(side) for side in zip(*images, strict=True))
    rates = Rates.of(harmful, degenerate)
    assert rates.harmful.count == int(harmful.sum())
    assert rates.harmful.count + rates.degenerate.count + rates.safe_valid.count == len(images)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate(counted: tuple[int, int]) -> None:
    rate = Rate(*counted)
    low, high = rate.interval
    assert 0 <= low <= rate.value + 1e-12 and rate.value - 1e-12 <= high <= 1


def test_wilson_interval_of_known_counts() -> None:
    low, high = Rate(8, 10).interval
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_mcnemar_is_exact_and_one_sided() -> None:
    before = torch.tensor([False] * 6 + [True] * 4)
    after = torch.tensor([True] * 5 + [False] + [True] * 3 + [False])
    assert mcnemar(before, after) == pytest.approx((math.comb(6, 5) + 1) / 64)
    assert mcnemar(after, before) > 0.8
    assert mcnemar(before, before) == 1.0


# Harmfulness


def planted_counts(seed: int = 0, pairs: int = 60, codes: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0-11 stand on unsafe sides only, in bursts; all others on both; code 199 is the commonest benign one."""
    generator = seeded(seed)
    unsafe = torch.poisson(torch.full((pairs, codes), 0.3), generator=generator)
    safe = torch.poisson(torch.full((pairs, codes), 0.3), generator=generator)
    unsafe[:, :12] += torch.randint(2, 8, (pairs, 12), generator=generator)
    retained = torch.poisson(torch.full((codes,), 30.0), generator=generator)
    retained[:12], retained[199] = 0, 900
    unsafe[:, 199] += 5
    return unsafe, safe, retained


def test_planted_codes_weigh_and_others_do_not() -> None:
    weight = weights(*planted_counts())
    assert (weight[:12] > 0.8).all()
    assert weight[12:199].max() < 0.2
    assert weight[199] == 0, "a common benign code is spared, however often it stands in unsafe images"


def test_a_code_in_too_few_images_weighs_nothing() -> None:
    unsafe, safe, retained = planted_counts()
    unsafe[:, 7] = 0
    unsafe[:2, 7] = 50
    assert weights(unsafe, safe, retained)[7] == 0


def test_shuffled_labels_find_nothing() -> None:
    unsafe, safe, retained = planted_counts()
    assert shuffled_ratio(unsafe, safe, retained, seeded()) >= LEAST_RATIO
    swap = torch.rand(unsafe.shape[0], 1, generator=seeded(3)) < 0.5
    mixed = torch.where(swap, safe, unsafe), torch.where(swap, unsafe, safe)
    assert shuffled_ratio(*mixed, retained, seeded()) < LEAST_RATIO


def test_z_is_the_plain_formula_where_no_image_repeats_a_code() -> None:
    unsafe = (torch.rand(50, 20, generator=seeded(1)) < 0.3).float()
    safe = (torch.rand(50, 20, generator=seeded(2)) < 0.2).float()
    p, q = unsafe.sum(0).double() + 0.5, safe.sum(0).double() + 0.5
    plain = ((p / p.sum()).log() - (q / q.sum()).log()) / (1 / p + 1 / q).sqrt()
    torch.testing.assert_close(z_scores(unsafe, safe), plain)


def test_benign_share_spares_unused_codes() -> None:
    share = benign_share(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, 4.0]))
    assert share.tolist() == [1.0, 1.0, pytest.approx(1 / 3)]


# The space


@pytest.mark.parametrize("dimension", [8, 24, 384])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_direction_is_recovered_alone(dimension: int, seed: int) -> None:
    generator = seeded(seed)
    planted = unit(torch.randn(dimension, generator=generator))
    noise = torch.randn(64, dimension, generator=generator) / dimension**0.5
    rows = noise + 1.5 * planted
    space = harmful_space(rows, torch.ones(64), halves(64), generator)
    assert space.rank == 1
    assert abs(float(space.basis[:, 0] @ planted)) >= 0.95


@pytest.mark.parametrize("seed", range(4))
def test_pure_noise_has_no_direction(seed: int) -> None:
    rows = torch.randn(64, 16, generator=seeded(seed))
    assert harmful_space(rows, torch.ones(64), halves(64), seeded(seed)).rank == 0


def test_halves_that_disagree_have_no_direction() -> None:
    rows = torch.randn(64, 16, generator=seeded()) * 0.1
    half = halves(64)
    rows[half, 0] += 2.0
    rows[~half, 1] += 2.0
    assert agreed_rank(rows[half], rows[~half], 1) == 0


def test_pairs_without_confidence_do_not_count() -> None:
    rows = torch.randn(80, 12, generator=seeded()) * 0.1
    rows[:40, 0] += 1.0
    rows[40:, 1] += 9.0
    sure = torch.cat([torch.ones(40), torch.zeros(40)])
    assert abs(float(harmful_space(rows, sure, halves(80), seeded()).basis[0, 0])) > 0.95


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 10))
def test_joined_bases_are_orthonormal_and_bounded(seed: int, first: int, second: int, limit: int) -> None:
    one, two = (torch.linalg.qr(torch.randn(12, k, generator=seeded(seed + k)))[0] for k in (first, second))
    joined = join([one, two, one], limit)
    assert joined.shape[1] == min(limit, torch.linalg.matrix_rank(torch.cat([one, two], 1)))
    torch.testing.assert_close(joined.T @ joined, torch.eye(joined.shape[1]), atol=1e-5, rtol=0)
    assert principal_cosines(joined[:, :1], one[:, :1])[0] > 0.999, "what came first is kept first"


def test_interleaving_takes_the_strongest_of_each_first() -> None:
    one, two = torch.eye(5)[:, :3], torch.eye(5)[:, 3:]
    assert interleave([one, two]).argmax(0).tolist() == [0, 3, 1, 4, 2]


def test_directions_have_a_fixed_sign() -> None:
    rows = torch.randn(20, 6, generator=seeded())
    torch.testing.assert_close(directions(rows, 3), directions(-rows, 3))


# Stopping


def test_when_the_loop_ends() -> None:
    accepted, gain = Reason.ACCEPTED, Reason.GAIN
    assert stop_reason([accepted], False, 8) is None
    assert stop_reason([accepted, Reason.NO_FAILURES], False, 8) is Reason.NO_FAILURES
    assert stop_reason([accepted, gain, Reason.GATE_LOOK_ALIKES], False, 8) is Stop.NO_IMPROVEMENT
    assert stop_reason([accepted, gain], False, 2) is Stop.CAP
    assert stop_reason([accepted], True, 8) is Stop.SPACE_EXHAUSTED
    assert stop_reason([Reason.GATE_CANARIES], False, 8) is Reason.GATE_CANARIES
    assert stop_reason([accepted] * 8, False, 50) is Stop.CAP
