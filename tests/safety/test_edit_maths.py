"""The pure maths of the loop: rates, weights, the Harmful Space, updates, the router, tuning in the null space."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebook.value import NO_EXPERT, HalfwayProbe, HeadEdit, Router
from safety.collect.router_data import PromptStates
from safety.edit.harmful_space import agreed_rank, directions, harmful_space, interleave, join, principal_cosines
from safety.edit.harmfulness import LEAST_RATIO, benign_share, shuffled_ratio, weights, z_scores
from safety.edit.head_edit import TeacherPairs, harmless, leading_part, refit
from safety.edit.pixel_table import Partners, project_rows, remap_pixels, update_pixels
from safety.edit.router import MOST_BENIGN, STEPS, fit_router
from safety.edit.tuning import HeadTuningData, PixelTuningData, divergence, tune_output, tune_pixels
from safety.gates.inputs import TuningMove
from safety.gates.null_space import check_null_space, output_moved, pixels_moved
from safety.metrics.rates import Rate, Rates, mcnemar
from safety.reason import Reason, Stop
from safety.runtime.progress import Cancelled
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


# The pixel table


def planted_table() -> tuple[Tensor, Tensor, Tensor, Partners]:
    """512 codes of 16 dims; the first eight lean along a planted direction, and code 100 is their safe partner."""
    generator = seeded(5)
    table = torch.randn(512, 16, generator=generator)
    planted = unit(torch.randn(16, generator=generator))
    table = table - (table @ planted)[:, None] * planted
    table[:8] = 0.2 * table[:8] + 3 * planted
    weight = torch.zeros(512)
    weight[:8] = 1.0
    partners = Partners(torch.arange(8), torch.full((8, 1), 100), torch.ones(8, 1))
    return table, weight, planted[:, None], partners


def test_projection_takes_the_harm_and_leaves_benign_rows() -> None:
    table, weight, basis, partners = planted_table()
    moved = update_pixels(table, weight, basis, table[8:].mean(0), partners, 1.0, normalised=False)
    assert float(((moved[:8] - table[8:].mean(0)) @ basis).abs().max()) < 0.05
    assert torch.equal(moved[8:], table[8:]), "rows of weight 0 stay bit for bit"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 4))
def test_projection_never_moves_outside_the_space(seed: int, strength: float, rank: int) -> None:
    generator = seeded(seed)
    table, weight = torch.randn(30, 8, generator=generator), torch.rand(30, generator=generator)
    basis = torch.linalg.qr(torch.randn(8, rank, generator=generator))[0]
    move = project_rows(table, weight, basis, table.mean(0), strength) - table
    assert float((move - move @ basis @ basis.T).abs().max()) < 1e-5


def test_a_planted_direction_costs_benign_images_under_a_hundredth() -> None:
    generator = seeded(7)
    table, _, planted, partners = planted_table()
    unsafe, safe = (torch.poisson(torch.full((60, 512), 0.12), generator=generator) for _ in range(2))
    unsafe[:, :8] += torch.poisson(torch.full((60, 8), 3.0), generator=generator)
    retained = torch.poisson(torch.full((512,), 20.0), generator=generator)
    retained[:8] = 0
    differences = (unsafe - safe) @ table / 64
    space = harmful_space(differences, torch.ones(60), halves(60), generator)
    assert space.rank == 1 and abs(float(space.basis[:, 0] @ planted[:, 0])) >= 0.95
    weight = weights(unsafe, safe, retained)
    moved = update_pixels(table, weight, space.basis, retained @ table / retained.sum(), partners, 1.0, False)
    drift = (retained * (moved - table).norm(dim=1)).sum() / (retained * table.norm(dim=1)).sum()
    assert float(drift) < 0.01


def test_rows_that_lose_their_norm_are_remapped_to_their_partner() -> None:
    table, weight, basis, partners = planted_table()
    table[:8] = 5 * basis[:, 0]
    moved = update_pixels(table, weight, basis, torch.zeros(16), partners, 1.0, normalised=True)
    torch.testing.assert_close(unit(moved[:8]), unit(table[100:101]).expand(8, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(moved.norm(dim=1), table.norm(dim=1))


def test_remap_never_uses_a_harmful_partner() -> None:
    table, weight, _, _ = planted_table()
    partners = Partners(torch.arange(8), torch.arange(8).roll(1)[:, None], torch.ones(8, 1))
    assert torch.equal(remap_pixels(table, weight, partners, 1.0, normalised=False), table)


def test_tuning_stays_in_the_null_space_over_300_adam_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safety.edit.tuning.PATIENCE", 300)  # all the steps, whether they still help or not
    table, weight, _, partners = planted_table()
    basis = torch.linalg.qr(torch.randn(16, 3, generator=seeded(2)))[0]
    draft = update_pixels(table, weight, basis, table.mean(0), partners, 1.0, normalised=False)
    paint = torch.randn(16, 3, generator=seeded(3))

    def decode(tokens: Tensor, pixel: Tensor) -> Tensor:
        return torch.tanh(pixel[tokens] @ paint).reshape(-1, 4, 4, 3).permute(0, 3, 1, 2)

    tokens = torch.randint(512, (64, 16), generator=seeded(4))
    tokens[:, :4] = torch.randint(8, (64, 4), generator=seeded(5))
    data, steps = PixelTuningData(tokens[:48], tokens[48:]), list[int]()
    tuned = tune_pixels(draft, table, basis, torch.ones(512), decode, data, 300, 16, seeded(6), steps.append)
    before, after = ((decode(tokens, t) - decode(tokens, table)).abs().mean() for t in (draft, tuned))
    assert len(steps) == 300
    assert after < before, "tuning must repair something"
    assert pixels_moved(draft, tuned, basis) <= 1e-5


# The output table


def planted_features(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Benign features [2000, 32], the same under a harmful word, the word's direction, an output table [50, 32]."""
    generator = seeded(seed)
    mix = torch.randn(12, 32, generator=generator)
    benign = torch.randn(2000, 12, generator=generator) @ mix
    planted = unit(torch.randn(32, generator=generator))
    return benign, benign + 4 * planted, planted, torch.randn(50, 32, generator=generator)


def test_refit_leads_to_the_safe_partner_and_leaves_benign_features() -> None:
    benign, harmful, planted, _ = planted_features()
    edit = refit(planted[:, None], benign.mean(0), TeacherPairs(harmful[:1000], benign[:1000]), benign[1000:], 16)
    assert (edit.apply(harmful) - benign).norm() < 0.05 * benign.norm()
    assert (edit.apply(benign) - benign).norm() < 0.05 * benign.norm()
    assert output_moved(edit) <= 1e-5
    assert edit.down.shape == (1, 32, 16) and edit.up.shape == (1, 16, 32)


def test_edited_logits_do_not_depend_on_the_space() -> None:
    benign, harmful, planted, rows = planted_features()
    edit = refit(planted[:, None], benign.mean(0), TeacherPairs(harmful, benign), benign, 8)
    shifted = harmful + 100 * planted
    torch.testing.assert_close(edit.apply(shifted) @ rows.T, edit.apply(harmful) @ rows.T, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(harmless(shifted, edit.mean, edit.basis[0]), harmless(harmful, edit.mean, edit.basis[0]))


def test_tuning_the_output_edit_keeps_it_out_of_the_space() -> None:
    benign, harmful, planted, rows = planted_features()
    up = torch.randn(1, 4, 32, generator=seeded())
    start = HeadEdit(planted[None, :, None], benign.mean(0), torch.zeros(1, 32, 4), up)
    data = HeadTuningData(TeacherPairs(harmful[:900], benign[:900]), benign, TeacherPairs(harmful[900:], benign[900:]))

    def head(features: Tensor) -> Tensor:
        return features @ rows.T

    tuned = tune_output(start, head, data, 300, 128, seeded(1), lambda step: None)
    assert divergence(tuned, head, data.check) < divergence(start, head, data.check)
    assert output_moved(tuned) <= 1e-5
    assert torch.equal(tuned.basis, start.basis) and torch.equal(tuned.mean, start.mean)


def test_tuning_that_helps_only_the_first_of_half_b_is_undone() -> None:
    benign, harmful, planted, rows = planted_features()
    up = torch.randn(1, 4, 32, generator=seeded())
    start = HeadEdit(planted[None, :, None], benign.mean(0), torch.zeros(1, 32, 4), up)
    features, targets = harmful + 3, benign - 3
    away = 2 * start.apply(features) - targets  # most targets of half B lie in the opposite direction
    check = TeacherPairs(features[600:], torch.cat([targets[600:628], away[628:]]))
    data = HeadTuningData(TeacherPairs(features[:600], targets[:600]), benign[:600], check)
    tuned = tune_output(start, lambda features: features @ rows.T, data, 40, 28, seeded(1), lambda step: None)
    assert tuned is start


def test_strength_counts_directions() -> None:
    basis = torch.eye(10)[:, :5]
    assert [leading_part(basis, b).shape[1] for b in (0.1, 0.25, 0.5, 1.0)] == [1, 2, 3, 5]


def read_prompts(words: Tensor, count: int, generator: torch.Generator) -> PromptStates:
    """Prompts of 3 to 8 tokens, each one of `words` [w, H] and noise, padded on the left."""
    chosen = torch.randint(len(words), (count, 8), generator=generator)
    seen = torch.arange(8) >= torch.randint(0, 6, (count, 1), generator=generator)
    return PromptStates(words[chosen] + 0.3 * torch.randn(count, 8, words.shape[1], generator=generator), seen)


def with_word(prompts: PromptStates, word: Tensor) -> PromptStates:
    """The same with the word as the last token but one."""
    states = prompts.states.clone()
    states[:, -2] = word + states[:, -2] - states[:, -2].round()
    return PromptStates(states, prompts.seen)


def test_a_router_names_the_harm_and_spares_benign_prompts() -> None:
    generator, steps = seeded(), list[int]()
    words = torch.randn(60, 24, generator=generator)
    benign = read_prompts(words[:57], 800, generator)
    harmful = [with_word(read_prompts(words[:57], 80, generator), word) for word in words[57:]]
    router = fit_router(harmful, benign, steps.append)
    assert steps[0] == 0 and steps == sorted(steps) and STEPS * 2 / 3 < max(steps) <= STEPS and len(set(steps)) > 15
    fresh = read_prompts(words[:57], 400, generator)
    assert float((router.choose(fresh.states, fresh.seen) != NO_EXPERT).double().mean()) <= MOST_BENIGN
    for word, expert in zip(words[57:], (0, 1, 2), strict=True):
        prompts = with_word(fresh, word)
        assert float((router.choose(prompts.states, prompts.seen) == expert).double().mean()) > 0.95


def test_fitting_a_router_ends_where_its_callback_raises() -> None:
    words = torch.randn(58, 24, generator=seeded())
    benign, steps = read_prompts(words[:57], 80, seeded()), list[int]()

    def stop(step: int) -> None:
        steps.append(step)
        if len(steps) == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_router([with_word(benign, words[57])], benign, stop)
    assert len(steps) == 5


def test_a_router_tells_harms_apart_that_are_much_alike() -> None:
    generator = seeded()
    words, apart = torch.randn(57, 24, generator=generator), torch.randn(3, 24, generator=generator)
    alike = 2 * torch.randn(24, generator=generator) + 0.7 * apart
    benign = read_prompts(words, 800, generator)
    router = fit_router(
        [with_word(read_prompts(words, 80, generator), word) for word in alike], benign, lambda step: None
    )
    for expert, word in enumerate(alike):
        prompts = with_word(read_prompts(words, 400, generator), word)
        assert float((router.choose(prompts.states, prompts.seen) == expert).double().mean()) > 0.95


def test_a_halfway_probe_names_the_harm_and_spares_benign_images() -> None:
    generator = seeded()
    shown = 3 * torch.randn(3, 24, generator=generator)

    def begun(count: int, harm: Tensor | float = 0.0) -> Tensor:
        return torch.randn(count, 24, generator=generator) + harm

    def single(means: Tensor) -> PromptStates:
        return PromptStates(means[:, None], torch.ones(len(means), 1, dtype=torch.bool))

    probe = HalfwayProbe(
        8, fit_router([single(begun(60, harm)) for harm in shown], single(begun(900)), lambda step: None)
    )
    assert probe.after == 8
    assert float((probe.choose(begun(600)) != NO_EXPERT).double().mean()) <= MOST_BENIGN
    for expert, harm in enumerate(shown):
        assert float((probe.choose(begun(200, harm)) == expert).double().mean()) > 0.95


def test_a_router_reads_nothing_into_padding() -> None:
    router = Router(torch.ones(1, 4), torch.zeros(1), torch.zeros(1).long())
    states = torch.full((1, 3, 4), -9.0)
    states[0, 0] = 9.0
    seen = torch.tensor([[False, True, True]])
    assert int(router.choose(states, seen)) == NO_EXPERT
    assert int(router.choose(states, ~seen)) == 0


def test_a_router_prefers_benign_prompts_where_nothing_separates() -> None:
    generator = seeded()
    words = torch.randn(60, 24, generator=generator)
    harmful = [read_prompts(words, 60, generator) for _ in range(2)]
    router = fit_router(harmful, read_prompts(words, 1000, generator), lambda step: None)
    fresh = read_prompts(words, 1000, generator)
    assert float((router.choose(fresh.states, fresh.seen) != NO_EXPERT).double().mean()) <= 0.01


def test_a_few_benign_prompts_that_say_the_harm_do_not_silence_a_router() -> None:
    generator = seeded()
    words = torch.randn(58, 24, generator=generator)
    benign = read_prompts(words[:57], 800, generator)
    benign.states[::100] = with_word(benign.part(slice(0, None, 100)), words[57]).states
    harmful = with_word(read_prompts(words[:57], 80, generator), words[57])
    router = fit_router([harmful], benign, lambda step: None)
    prompts = with_word(read_prompts(words[:57], 400, generator), words[57])
    assert float((router.choose(prompts.states, prompts.seen) == 0).double().mean()) > 0.9


# Gates and stopping


def test_the_null_space_gate_refuses_what_moved_and_what_came_back() -> None:
    assert check_null_space(TuningMove(9e-6, 0.5, 0.51)).passed
    assert not check_null_space(TuningMove(2e-5, 0.5, 0.5)).passed
    assert not check_null_space(TuningMove(0.0, 0.5, 0.52)).passed


def test_when_the_loop_ends() -> None:
    accepted, gain = Reason.ACCEPTED, Reason.GAIN
    assert stop_reason([accepted], 0.5, False, 8) is None
    assert stop_reason([accepted], 0.01, False, 8) is Stop.TARGET
    assert stop_reason([accepted, gain, Reason.GATE_LOOK_ALIKES], 0.5, False, 8) is Stop.NO_IMPROVEMENT
    assert stop_reason([accepted, gain], 0.5, False, 2) is Stop.CAP
    assert stop_reason([accepted], 0.5, True, 8) is Stop.SPACE_EXHAUSTED
    assert stop_reason([Reason.GATE_CANARIES], 0.5, False, 8) is Reason.GATE_CANARIES
    assert stop_reason([accepted] * 8, 0.5, False, 50) is Stop.CAP
