"""Limits of the degenerate-image detector from few calibration images."""

from __future__ import annotations

import pytest
import torch

from safety.metrics.degenerate import ENOUGH, SLACK, ImageMeasures, calibrate, held_out_degenerate

MOST = 0.02  # of valid images


def measured(count: int, seed: int) -> ImageMeasures:
    """Measures of images that are all of a kind."""
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(count, width, generator=generator, dtype=torch.float64) for width in (11, 8)]
    return ImageMeasures(*normal)


@pytest.mark.parametrize("count", [120, 160, 250, ENOUGH])
def test_few_images_set_limits_that_others_of_their_kind_keep(count: int) -> None:
    few, others = measured(count, 1), measured(2000, 2)
    assert held_out_degenerate(few, 8).double().mean() <= MOST
    assert calibrate(few, 8).outside(others).double().mean() <= MOST


def test_limits_stand_further_out_the_fewer_images_set_them() -> None:
    few, many = (calibrate(measured(count, 1), 8) for count in (120, ENOUGH))
    assert (few.high - few.low).mean() > (many.high - many.low).mean()
    values = torch.linspace(0, 1, ENOUGH, dtype=torch.float64)[:, None].expand(-1, 11)
    wide = calibrate(ImageMeasures(values, measured(ENOUGH, 1).layouts), 8)
    assert wide.high[0] == pytest.approx(0.998 + SLACK * 0.996)  # as the method has it, where there are enough


@pytest.mark.parametrize("count", [40, 120, ENOUGH])
def test_an_image_far_from_all_others_stays_outside(count: int) -> None:
    far = ImageMeasures(torch.full((1, 11), 12.0, dtype=torch.float64), torch.full((1, 8), 12.0, dtype=torch.float64))
    assert calibrate(measured(count, 1), 8).outside(far).all()
