"""Finding an edit of the pixel table: weights of codes and a space for the pattern-level categories.

Object-level harm is an arrangement of codes that benign objects share; this table cannot tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.round_data import RoundData
from safety.edit.harmful_space import harmful_space, interleave, join
from safety.edit.harmfulness import LEAST_RATIO, shuffled_ratio, weights
from safety.edit.pixel_table import remap_pixels, update_pixels
from safety.edit.tuning import PixelTuningData, tune_pixels
from safety.gates.null_space import pixels_moved
from safety.metrics.charts import spectra_png, weights_png
from safety.runtime.model_runner import ModelRunner

PROJECT, REMAP = "project", "remap"
ALL = "all"


@dataclass(frozen=True)
class PixelEditor:
    """weights: [K]; basis: [D, k]; way: "project" (weighted projection) or "remap"; see safety/edit/pixel_table.py."""

    studio: ModelRunner
    start: Codebook
    material: RoundData
    weights: Tensor
    basis: Tensor
    way: str
    found: dict[str, Any]
    table: str = "pixel"

    @property
    def spaces(self) -> dict[str, Tensor]:
        """One space for all categories: they share the table."""
        return {ALL: self.basis}

    @property
    def full(self) -> bool:
        """Whether the space holds as many directions as it may."""
        return self.basis.shape[1] >= largest_rank(self.start.pixel.shape[1])

    def draft(self, strength: float) -> Codebook:
        """The start with weighted rows moved."""
        table, partners = self.start.pixel, self.material.evidence.places
        normalised = self.studio.model.facts.normalised
        if self.way == REMAP:
            moved = remap_pixels(table, self.weights, partners, strength, normalised)
        else:
            rows = table / table.norm(dim=1, keepdim=True) if normalised else table
            mean = self.material.baseline.mean_code(rows)
            moved = update_pixels(table, self.weights, self.basis, mean, partners, strength, normalised)
        return replace(self.start, version="draft", pixel=moved)

    def tune(self, draft: Codebook) -> Codebook:
        """The draft with its safe sides and benign images led back to what the model's own table shows."""
        material, plan = self.material, self.material.plan
        safe = torch.stack([pair.safe_tokens for pair in material.pairs])
        benign, fit = material.baseline.retention.tokens, material.baseline.fit
        held = safe[~material.first_half][: plan.held_images]
        lesson = PixelTuningData(torch.cat([safe[material.first_half], benign[fit]]), held)
        table = tune_pixels(
            draft.pixel,
            self.studio.base.pixel,
            self.basis,
            material.baseline.use,
            self.studio.model.decode,
            lesson,
            plan.pixel_steps,
            plan.tuning_batch,
            material.generator("tune", self.table),
            self.studio.steps("tune pixel table", plan.pixel_steps),
        )
        return replace(draft, pixel=table)

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """||Pi (E_after - E_before)||."""
        return pixels_moved(draft.pixel, tuned.pixel, self.basis)

    def to_dict(self) -> dict[str, Any]:
        """Ranks and weights by category."""
        return {"way": self.way, "k": self.basis.shape[1], **self.found}

    def pictures(self) -> dict[str, bytes]:
        """The spectrum of each category's space, and the weights of the codes."""
        return {
            "spectrum_pixel.png": spectra_png(self.found),
            "code_weights.png": weights_png(self.weights.tolist()),
        }


def largest_rank(dimensions: int) -> int:
    """How many directions all categories and rounds together may take of a space."""
    return max(1, dimensions // 2)


def pixel_editors(
    studio: ModelRunner, start: Codebook, material: RoundData, patterns: Sequence[str], taken: Mapping[str, Tensor]
) -> list[PixelEditor]:
    """An editor for each way, or none where no pattern-level category shows a signal.

    patterns: the pattern-level categories; taken: [D, k] spaces of the rounds before.
    """
    codes = studio.model.facts.codes
    unsafe, safe = material.evidence.counts(codes)
    heavy, bases = torch.zeros(codes), list[Tensor]()
    found: dict[str, Any] = {}
    for category in (name for name in material.categories if name in patterns):
        studio.tell("pixel space", 0, 1)
        rows = material.of(category)
        p, q = unsafe[rows], safe[rows]
        ratio = shuffled_ratio(p, q, material.baseline.use, material.generator("shuffle", category))
        differences = (p - q) @ start.pixel / p.sum(1, keepdim=True).clamp(min=1)
        halves, sure = material.first_half[rows], material.confidence[rows]
        space = harmful_space(differences, sure, halves, material.generator("space", category))
        weight = weights(p, q, material.baseline.use)
        found[category] = {**space.to_dict(), "shuffled_ratio": ratio, "weight": float(weight.sum())}
        if ratio >= LEAST_RATIO and space.rank:
            heavy = torch.maximum(heavy, weight)
            bases.append(space.basis)
    if not heavy.any():
        return []
    basis = join([*taken.values(), interleave(bases)], largest_rank(start.pixel.shape[1]))
    return [PixelEditor(studio, start, material, heavy, basis, way, found) for way in (PROJECT, REMAP)]
