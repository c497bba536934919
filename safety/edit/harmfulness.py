"""Harmfulness of codes: the log odds of a code at tokens caused by unsafe words against the safe prompt's codes.

Pure maths on counts of one category.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 0.5  # a
CENTRE = 3.0  # z0: a code this many deviations above chance weighs one half
WIDTH = 0.5  # tau
LEAST_IMAGES = 3  # a code seen in fewer distinct unsafe images weighs nothing
COMMON = 0.01  # nor does one among this share of the most used benign codes
SHUFFLES = 20
LEAST_RATIO = 5.0  # summed weights over those of shuffled labels


def z_scores(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Log odds ratio l_k of each code over its deviation, [K] float64, from counts [pairs, K] on either side.

    Tokens of one image come together, so the variance of a count is the sum of its squares over images, not the count:
    1/(P+a) + 1/(Q+a) where no image holds a code twice, and more where it does. Taking tokens for independent makes
    shuffled labels look significant.
    """
    p, q = unsafe.double().sum(0) + SMOOTHING, safe.double().sum(0) + SMOOTHING
    ratio = (p / p.sum()).log() - (q / q.sum()).log()
    spread_p, spread_q = (side.double().square().sum(0) + SMOOTHING for side in (unsafe, safe))
    return ratio / (torch.maximum(spread_p, p) / p.square() + torch.maximum(spread_q, q) / q.square()).sqrt()


def benign_share(retained: Tensor, unsafe: Tensor) -> Tensor:
    """r_k in [0, 1], [K]: the benign part of a code's use, from counts R and P [K]; 1 where neither uses it."""
    r = retained.double() / retained.sum().clamp(min=1)
    p = unsafe.double() / unsafe.sum().clamp(min=1e-9)
    return torch.where(r + p > 0, r / (r + p).clamp(min=1e-30), 1.0)


def weights(unsafe: Tensor, safe: Tensor, retained: Tensor, centre: float = CENTRE) -> Tensor:
    """w_k in [0, 1], [K] float32.

    unsafe, safe: [pairs, K] counts on either side of each pair; retained: [K] counts on benign images; centre: z0.
    """
    totals = unsafe.sum(0)
    weight = torch.sigmoid((z_scores(unsafe, safe) - centre) / WIDTH) * (1 - benign_share(retained, totals))
    weight[(unsafe >= 0.5).sum(0) < LEAST_IMAGES] = 0
    most_used = retained.topk(max(1, round(COMMON * retained.numel()))).indices
    weight[most_used[retained[most_used] > 0]] = 0
    return weight.float()


def shuffled_ratio(unsafe: Tensor, safe: Tensor, retained: Tensor, generator: torch.Generator) -> float:
    """Sum of the weights over its mean when the labels are shuffled within pairs; at least LEAST_RATIO is a signal."""
    total = 0.0
    for _ in range(SHUFFLES):
        swap = torch.rand(unsafe.shape[0], 1, generator=generator) < 0.5
        total += float(weights(torch.where(swap, safe, unsafe), torch.where(swap, unsafe, safe), retained).sum())
    return float(weights(unsafe, safe, retained).sum()) / max(total / SHUFFLES, 1e-9)
