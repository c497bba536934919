"""Fitting the probes that decide, from the first feature after the prompt, whether the output edit applies.

A ridge logistic regression, solved to its only minimum, so that the same pairs give the same router.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codebook.value import Router

RIDGE = 1e-3
MOST_BENIGN = 0.01  # share of held-out benign prompts that may fire
MOST_MISSED = 0.05  # share of held-out harmful prompts that the margin may come to
ITERATIONS = 50
CONVERGED = 1e-9


def fit_router(
    harmful: Sequence[Tensor],
    benign: Tensor,
    held_harmful: Sequence[Tensor],
    held_benign: Tensor,
    mean: Tensor,
) -> Router:
    """One probe for each set of harmful first features [., M] float32, all against the same benign ones.

    The held-out sets place the thresholds; together the probes fire on at most MOST_BENIGN of `held_benign`.
    """
    share = MOST_BENIGN / len(harmful)
    sides = zip(harmful, held_harmful, strict=True)
    probes = [_fit_probe(fit, benign, held, held_benign, mean, share) for fit, held in sides]
    return Router(torch.stack([weight for weight, _ in probes]), torch.tensor([bias for _, bias in probes]))


def _fit_probe(
    harmful: Tensor, benign: Tensor, held_harmful: Tensor, held_benign: Tensor, mean: Tensor, share: float
) -> tuple[Tensor, float]:
    """Weight [M] float32 and bias of one probe.

    The weight is fitted with equal mass on both sides. The threshold lies halfway between the benign and the harmful
    held-out scores where they leave a gap, else where `share` of the benign ones fire: benign images come first.
    """
    features = torch.cat([harmful, benign]).double() - mean.double()
    labels = torch.cat([torch.ones(harmful.shape[0]), torch.zeros(benign.shape[0])]).double()
    weight = logistic(features, labels)
    benign_score = ((held_benign.double() - mean) @ weight).quantile(1 - share)
    harmful_score = ((held_harmful.double() - mean) @ weight).quantile(MOST_MISSED)
    threshold = torch.maximum(benign_score, (benign_score + harmful_score) / 2)
    # A hair above the quantile: one benign prompt lies exactly on it.
    return weight.float(), -float(threshold) - 1e-6


def logistic(features: Tensor, labels: Tensor) -> Tensor:
    """Weights [M] float64 of a ridge logistic regression by Newton's method; features [R, M], labels 0 or 1 [R]."""
    scale = features.std(0).clamp(min=1e-6)
    rows = torch.cat([features / scale, torch.ones(features.shape[0], 1)], 1)
    mass = torch.where(labels > 0, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    ridge = RIDGE * torch.ones(rows.shape[1], dtype=torch.float64)
    ridge[-1] = 1e-9  # the intercept is free
    weight = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(ITERATIONS):
        chance = torch.sigmoid(rows @ weight)
        slope = rows.T @ (mass * (chance - labels)) + ridge * weight
        curve = rows.T @ ((mass * chance * (1 - chance))[:, None] * rows) + ridge.diag()
        step = torch.linalg.solve(curve, slope)
        weight = weight - step
        if step.abs().max() < CONVERGED:
            break
    return weight[:-1] / scale
