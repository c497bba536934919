"""The editor of the pixel table: weights of codes and a Harmful Space for the pattern-level categories.

Object-level harm is an arrangement of codes that benign objects share; this table cannot separate it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.round_data import RoundData
from safety.edit.editor import STRENGTHS
from safety.edit.harmful_space import harmful_space, interleave, join
from safety.edit.harmfulness import LEAST_RATIO, shuffled_ratio, weights
from safety.edit.pixel_table import off_manifold, remap_pixels, update_pixels
from safety.edit.tuning import PixelTuningData, tune_pixels
from safety.gates.null_space import pixels_moved
from safety.metrics.charts import spectra_png, weights_png
from safety.runtime.model_runner import ModelRunner

PROJECT, REMAP = "project", "remap"
ALL = "all"


@dataclass(frozen=True)
class PixelEditor:
    """weights: [K]; basis: [D, k]; way: "project" (weighted projection) or "remap"; see safety/edit/pixel_table.py."""

    runner: ModelRunner
    start: Codebook
    round_data: RoundData
    weights: Tensor
    basis: Tensor
    way: str
    report: dict[str, Any]
    table: str = "pixel"
    strengths: tuple[float, ...] = STRENGTHS

    @property
    def spaces(self) -> dict[str, Tensor]:
        """One space for all categories: they share the table."""
        return {ALL: self.basis}

    @cached_property
    def limit(self) -> Tensor:
        """Beyond which a row is like no code; the same for every draft, and long to compute for a large table."""
        return off_manifold(self.start.pixel, self.runner.model.facts.normalised)

    @property
    def full(self) -> bool:
        """Whether the space holds as many directions as it may."""
        return self.basis.shape[1] >= largest_rank(self.start.pixel.shape[1])

    def draft(self, strength: float) -> Codebook:
        """The start with weighted rows moved."""
        table, partners = self.start.pixel, self.round_data.attribution.blamed
        normalised = self.runner.model.facts.normalised
        if self.way == REMAP:
            moved = remap_pixels(table, self.weights, partners, strength, normalised)
        else:
            rows = table / table.norm(dim=1, keepdim=True) if normalised else table
            mean = self.round_data.baseline.mean_code(rows)
            moved = update_pixels(table, self.weights, self.basis, mean, partners, strength, normalised, self.limit)
        return replace(self.start, version="draft", pixel=moved)

    def tune(self, draft: Codebook, strength: float) -> Codebook:
        """The draft tuned so that safe and benign images decode as under the base table."""
        round_data, config = self.round_data, self.round_data.config
        safe = torch.stack([pair.safe_tokens for pair in round_data.pairs])
        benign, fit = round_data.baseline.retention.tokens, round_data.baseline.fit
        held = safe[~round_data.first_half][: config.held_images]
        data = PixelTuningData(torch.cat([safe[round_data.first_half], benign[fit]]), held)
        table = tune_pixels(
            draft.pixel,
            self.runner.base.pixel,
            self.basis,
            round_data.baseline.use,
            self.runner.model.decode,
            data,
            config.pixel_steps,
            config.tuning_batch,
            round_data.generator("tune", self.table),
            self.runner.steps("tune pixel table", config.pixel_steps),
        )
        return replace(draft, pixel=table)

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """||Pi (E_after - E_before)||."""
        return pixels_moved(draft.pixel, tuned.pixel, self.basis)

    def to_dict(self) -> dict[str, Any]:
        """Ranks and weights by category."""
        return {"way": self.way, "k": self.basis.shape[1], **self.report}

    def pictures(self) -> dict[str, bytes]:
        """The spectrum of each category's space, and the weights of the codes."""
        return {
            "spectrum_pixel.png": spectra_png(self.report),
            "code_weights.png": weights_png(self.weights.tolist()),
        }


def largest_rank(dimensions: int) -> int:
    """The most directions that all categories and rounds together may take of a space."""
    return max(1, dimensions // 2)


def pixel_editors(
    runner: ModelRunner, start: Codebook, round_data: RoundData, patterns: Sequence[str], taken: Mapping[str, Tensor]
) -> list[PixelEditor]:
    """An editor for each way, or none where no pattern-level category shows a signal.

    patterns: the pattern-level categories; taken: [D, k] spaces of the rounds before.
    """
    codes = runner.model.facts.codes
    unsafe, safe = round_data.attribution.counts(codes)
    heavy, bases = torch.zeros(codes), list[Tensor]()
    report: dict[str, Any] = {}
    for category in (name for name in round_data.categories if name in patterns):
        runner.report("pixel space", 0, 1)
        rows = round_data.of(category)
        p, q = unsafe[rows], safe[rows]
        ratio = shuffled_ratio(p, q, round_data.baseline.use, round_data.generator("shuffle", category))
        differences = (p - q) @ start.pixel / p.sum(1, keepdim=True).clamp(min=1)
        halves, sure = round_data.first_half[rows], round_data.confidence[rows]
        space = harmful_space(differences, sure, halves, round_data.generator("space", category))
        weight = weights(p, q, round_data.baseline.use)
        report[category] = {**space.to_dict(), "shuffled_ratio": ratio, "weight": float(weight.sum())}
        if ratio >= LEAST_RATIO and space.rank:
            heavy = torch.maximum(heavy, weight)
            bases.append(space.basis)
    if not heavy.any():
        return []
    basis = join([*taken.values(), interleave(bases)], largest_rank(start.pixel.shape[1]))
    return [PixelEditor(runner, start, round_data, heavy, basis, way, report) for way in (PROJECT, REMAP)]
