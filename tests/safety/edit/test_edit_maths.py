"""Updates of the pixel table, the head edit, and tuning in the null space: pure maths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebook.value import HeadEdit
from safety.edit.harmful_space import harmful_space
from safety.edit.harmfulness import weights
from safety.edit.head_edit import TeacherPairs, harmless, leading_part, refit
from safety.edit.pixel_table import (
    SAME,
    Partners,
    nearest_distances,
    off_manifold,
    project_rows,
    remap_pixels,
    update_pixels,
)
from safety.edit.tuning import HeadTuningData, PixelTuningData, divergence, tune_output, tune_pixels
from safety.gates.inputs import TuningMove
from safety.gates.null_space import check_null_space, output_moved, pixels_moved
from tests.safety.edit.test_space_maths import halves, seeded, unit

torch.set_num_threads(1)


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
    moved = update_pixels(table, weight, basis, table[8:].mean(0), partners, 1.0, False, off_manifold(table, False))
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
    moved = update_pixels(
        table, weight, space.basis, retained @ table / retained.sum(), partners, 1.0, False, off_manifold(table, False)
    )
    drift = (retained * (moved - table).norm(dim=1)).sum() / (retained * table.norm(dim=1)).sum()
    assert float(drift) < 0.01


def test_rows_that_lose_their_norm_are_remapped_to_their_partner() -> None:
    table, weight, basis, partners = planted_table()
    table[:8] = 5 * basis[:, 0]
    moved = update_pixels(table, weight, basis, torch.zeros(16), partners, 1.0, True, off_manifold(table, True))
    torch.testing.assert_close(unit(moved[:8]), unit(table[100:101]).expand(8, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(moved.norm(dim=1), table.norm(dim=1))


@pytest.mark.parametrize("middle", [0.0, 100.0])  # far from zero the product form of a distance is of no use
def test_nearest_distances_are_exact_whatever_the_table(middle: float) -> None:
    table = middle + 0.05 * torch.randn(300, 24, generator=seeded(1))
    table[1:21:2] = table[:20:2]
    rows = torch.cat([table[:50], table[:50] + 0.01 * torch.randn(50, 24, generator=seeded(2))])
    distances = torch.cdist(rows, table, compute_mode="donot_use_mm_for_euclid_dist")
    exact = distances.masked_fill(distances < SAME, torch.inf).min(1).values
    assert torch.equal(nearest_distances(rows, table), exact) and float(exact.max()) < 1


def test_remap_never_uses_a_harmful_partner() -> None:
    table, weight, _, _ = planted_table()
    partners = Partners(torch.arange(8), torch.arange(8).roll(1)[:, None], torch.ones(8, 1))
    assert torch.equal(remap_pixels(table, weight, partners, 1.0, normalised=False), table)


def test_tuning_stays_in_the_null_space_over_300_adam_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safety.edit.tuning.PATIENCE", 300)  # all the steps, whether they still help or not
    table, weight, _, partners = planted_table()
    basis = torch.linalg.qr(torch.randn(16, 3, generator=seeded(2)))[0]
    draft = update_pixels(table, weight, basis, table.mean(0), partners, 1.0, False, off_manifold(table, False))
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


def test_the_null_space_gate_refuses_what_moved_and_what_came_back() -> None:
    assert check_null_space(TuningMove(9e-6, 0.5, 0.51)).passed
    assert not check_null_space(TuningMove(2e-5, 0.5, 0.5)).passed
    assert not check_null_space(TuningMove(0.0, 0.5, 0.52)).passed
