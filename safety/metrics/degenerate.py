"""The degenerate-image detector: statistics of pixels and tokens outside the range of the base codebook's images.

Calibrated on the base's safe images. Catches flat, noisy, shuffled, blurred and tiled images, not wrong ones. Knows
nothing of harm.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

OUTER = 0.002  # quantile of the calibration images, on either side, from which the limits are measured
SLACK = 0.15  # of the distance between the quantiles, beyond them
ENOUGH = 500  # calibration images, as the method requires; of fewer the quantiles may lie too near
WIDER = (SLACK, 0.3, 0.6, 1.0)  # slacks to try then; beyond the last one blurred images pass (docs/log.md, 2026-11-29)
MOST_HELD_OUT = 0.01  # share of valid images that limits set by the others may call degenerate
COMPONENTS = 24  # of the frozen feature space
FOLDS = 5
BINS = 32
JPEG_QUALITY = 85


@dataclass(frozen=True)
class ImageMeasures:
    """Statistics of n images: measures [n, 11] and layouts [n, f], float64; see the functions of these names."""

    measures: Tensor
    layouts: Tensor

    def part(self, rows: Tensor) -> ImageMeasures:
        """Some of the images."""
        return ImageMeasures(self.measures[rows], self.layouts[rows])

    def joined(self, other: ImageMeasures) -> ImageMeasures:
        """These images and then the others."""
        return ImageMeasures(*(torch.cat(both) for both in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class DegenerateDetector:
    """The limits of a valid image, and the frozen feature space of base safe outputs.

    low, high: [m] float64 limits of the measures. centre [f], axes [f, c], known [n, c]: the feature space and the
    calibration images in it. cell: pixels a token, along a side.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    axes: Tensor
    known: Tensor
    cell: int

    def degenerate(self, images: Tensor, tokens: Tensor, nll: Tensor) -> Tensor:
        """Bool [B]: which images [B, 3, H, W] in [-1, 1], of tokens [B, N] with NLL [B, 2], are degenerate."""
        return self.outside(measure(images, tokens, nll, self.cell))

    def features(self, images: Tensor) -> Tensor:
        """Coordinates of images [B, 3, H, W] in the frozen feature space, [B, c] float64."""
        return project(layout(images), self.centre, self.axes)

    def outside(self, measured: ImageMeasures) -> Tensor:
        """Bool [B]: measured images that are degenerate."""
        far = nearest(project(measured.layouts, self.centre, self.axes), self.known)
        everything = torch.cat([measured.measures, far[:, None]], 1)
        return ~((everything >= self.low) & (everything <= self.high)).all(1)  # NaN lies within no limits


def calibrate(measured: ImageMeasures, cell: int) -> DegenerateDetector:
    """The limits that base safe images set; the method requires at least ENOUGH of them.

    Of fewer, the slack is the least of WIDER at which hardly any image lies outside the limits that the others set.
    """
    return _limits(measured, cell, _slack(measured, cell))


def held_out_degenerate(measured: ImageMeasures, cell: int) -> Tensor:
    """Bool [n]: base safe images that are degenerate by the limits that the others set, in FOLDS folds."""
    return _held_out(measured, cell, _slack(measured, cell))


def _slack(measured: ImageMeasures, cell: int) -> float:
    if len(measured.measures) >= ENOUGH:
        return SLACK
    shares = ((slack, float(_held_out(measured, cell, slack).double().mean())) for slack in WIDER)
    return next((slack for slack, share in shares if share <= MOST_HELD_OUT), WIDER[-1])


def _held_out(measured: ImageMeasures, cell: int, slack: float) -> Tensor:
    degenerate = torch.zeros(len(measured.measures), dtype=torch.bool)
    for fold in range(FOLDS):
        held = torch.arange(len(degenerate)) % FOLDS == fold
        degenerate[held] = _limits(measured.part(~held), cell, slack).outside(measured.part(held))
    return degenerate


def _limits(measured: ImageMeasures, cell: int, slack: float) -> DegenerateDetector:
    """The outer quantiles of the images, and `slack` of their distance beyond them."""
    centre = measured.layouts.mean(0)
    _, sizes, right = torch.linalg.svd(measured.layouts - centre, full_matrices=False)
    rank = min(COMPONENTS, int((sizes > 1e-6).sum()))
    axes = right[:rank].T * (len(measured.layouts) ** 0.5 / sizes[:rank])
    known = project(measured.layouts, centre, axes)
    everything = torch.cat([measured.measures, nearest(known, known)[:, None]], 1)
    low, high = everything.quantile(OUTER, 0), everything.quantile(1 - OUTER, 0)
    beyond = slack * (high - low) + 1e-9
    return DegenerateDetector(low - beyond, high + beyond, centre, axes, known, cell)


def measure(images: Tensor, tokens: Tensor, nll: Tensor, cell: int) -> ImageMeasures:
    """Measure images [n, 3, H, W] in [-1, 1] with tokens [n, N] and NLL [n, 2]."""
    return ImageMeasures(measures(images, tokens, nll, cell), layout(images))


def measures(images: Tensor, tokens: Tensor, nll: Tensor, cell: int) -> Tensor:
    """The measures of each image, [B, 11] float64.

    Contrast, entropy, edges, crispness, smoothness, repetition, seams, JPEG bits, share of the commonest token,
    unconditional NLL (nats a token), and its ratio to the NLL of the same tokens shuffled: a simple image has a low NLL
    either way, so the ratio shows a bad arrangement.
    """
    grey = images.double().mean(1)
    across, down = grey.diff(dim=2).abs(), grey.diff(dim=1).abs()
    steps = torch.cat([across.flatten(1), down.flatten(1)], 1)
    columns = [
        images.double().std((1, 2, 3)),
        entropy(grey),
        steps.mean(1),
        crispness(grey, steps),
        correlation(grey, 1),
        correlation(grey, grey.shape[1] // 2),
        seams(across, down, cell),
        jpeg_bits(images),
        commonest(tokens),
        nll[:, 0].double(),
        nll[:, 0].double() / nll[:, 1].double().clamp(min=1e-3),
    ]
    return torch.stack(columns, 1)


def entropy(grey: Tensor) -> Tensor:
    """Bits of the grey histogram, [B] from [B, H, W] in [-1, 1]."""
    bins = ((grey.flatten(1) + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    shares = torch.stack([(bins == level).double().mean(1) for level in range(BINS)], 1)
    return -(shares * shares.clamp(min=1e-12).log2()).sum(1)


def crispness(grey: Tensor, steps: Tensor) -> Tensor:
    """The sharpest bends over the sharpest steps: [B] from [B, H, W] and its first differences [B, n].

    About 1 where the outlines are crisp, a third or less after blurring, whatever the contrast.
    """
    bends = torch.cat([grey.diff(n=2, dim=axis).abs().flatten(1) for axis in (1, 2)], 1)
    return bends.quantile(0.99, dim=1) / (steps.quantile(0.99, dim=1) + 1e-3)


def correlation(grey: Tensor, shift: int) -> Tensor:
    """Autocorrelation at a cyclic shift along both axes, the mean of the two: [B]; 1 for a flat image."""
    centred = grey - grey.mean((1, 2), keepdim=True)
    power = centred.square().mean((1, 2))
    moved = sum((centred * centred.roll(shift, axis)).mean((1, 2)) for axis in (1, 2)) / 2
    return torch.where(power > 1e-9, moved / power.clamp(min=1e-9), 1.0)


def seams(across: Tensor, down: Tensor, cell: int) -> Tensor:
    """Steps at token borders over steps elsewhere: [B], from |differences| along x [B, H, W-1] and y [B, H-1, W]."""
    border_x = torch.arange(1, across.shape[2] + 1) % cell == 0
    border_y = torch.arange(1, down.shape[1] + 1) % cell == 0
    at = torch.cat([across[:, :, border_x].flatten(1), down[:, border_y].flatten(1)], 1).mean(1)
    off = torch.cat([across[:, :, ~border_x].flatten(1), down[:, ~border_y].flatten(1)], 1).mean(1)
    return at / (off + 1e-3)


def jpeg_bits(images: Tensor) -> Tensor:
    """Bits a pixel after JPEG, [B] float64: little for flat images, much for noise."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    sizes = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
        sizes.append(8 * buffer.tell() / (picture.shape[0] * picture.shape[1]))
    return torch.tensor(sizes, dtype=torch.float64)


def commonest(tokens: Tensor) -> Tensor:
    """Share of the commonest token of each image: [B] float64 from [B, N]."""
    return (tokens == tokens.mode(1, keepdim=True).values).double().mean(1)


def layout(images: Tensor) -> Tensor:
    """Mean colour and edge strength on an 8 x 8 grid: [B, 256] float64."""
    pictures = images.double()
    grey = pictures.mean(1, keepdim=True)
    edges = grey.diff(dim=3)[:, :, 1:].abs() + grey.diff(dim=2)[:, :, :, 1:].abs()
    return torch.cat([adaptive_avg_pool2d(pictures, 8).flatten(1), 4 * adaptive_avg_pool2d(edges, 8).flatten(1)], 1)


def project(laid: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Layouts [B, f] in the whitened feature space: [B, c]."""
    return (laid - centre) @ axes


def nearest(points: Tensor, known: Tensor) -> Tensor:
    """Distance to the nearest known point that is not the point itself: [B]."""
    # Not by the product form: it gives a point some distance from itself.
    distances = torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(distances < 1e-4, torch.inf).min(1).values
