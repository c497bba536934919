"""Finding an edit of the output table: the space of what unsafe words add to the head's features, and a router.

Any category, at either level: this table is the one that sees the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.errors import SafeCBError
from codebook.value import Codebook, OutputEdit, Router
from safety.contexts import Contexts
from safety.gates.g7_null_space import output_moved
from safety.material import Material
from safety.output_update import leading_part, refit
from safety.pixel_editor import largest_rank
from safety.router import fit_router
from safety.space import harmful_space, interleave, join
from safety.studio import Studio
from safety.tune import OutputLesson, tune_output


@dataclass(frozen=True)
class OutputEditor:
    """basis: [M, k] of all categories so far; router: decides which images the edit applies to."""

    studio: Studio
    start: Codebook
    material: Material
    basis: Tensor
    router: Router
    found: dict[str, Any]
    table: str = "output"

    @property
    def full(self) -> bool:
        """Whether the space holds as many directions as it may."""
        return self.basis.shape[1] >= largest_rank(self.basis.shape[0])

    def draft(self, strength: float) -> Codebook:
        """The start with the leading directions removed and the rest led to the safe partner in least squares."""
        material = self.material
        lesson, benign = material.evidence.lesson(material.first_half), material.baseline.features
        basis = leading_part(self.basis, strength)
        edit = refit(basis, material.baseline.mean, lesson, benign, material.plan.tuned_rank)
        return replace(self.start, version="draft", output=replace(edit, router=self.router))

    def tune(self, draft: Codebook) -> Codebook:
        """The draft with its tuned part trained on the codes of the safe partner."""
        material, plan = self.material, self.material.plan
        evidence, halves = material.evidence, material.first_half
        lesson = OutputLesson(evidence.lesson(halves), material.baseline.features, evidence.lesson(~halves))
        edit = tune_output(
            _edit_of(draft),
            self.studio.model.head,
            lesson,
            plan.output_steps,
            plan.tuning_rows,
            material.generator("tune", self.table),
            self.studio.steps("tune output table", plan.output_steps),
        )
        return replace(draft, output=edit)

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """How much of the space the tuned part reads."""
        return max(output_moved(_edit_of(draft)), output_moved(_edit_of(tuned)))

    def told(self) -> dict[str, Any]:
        """Ranks by category, and where the router fires."""
        return {"k": self.basis.shape[1], **self.found}


def _edit_of(codebook: Codebook) -> OutputEdit:
    if codebook.output is None:
        raise SafeCBError(f"codebook {codebook.version} has no output edit to tune")
    return codebook.output


def output_editors(
    studio: Studio, start: Codebook, material: Material, contexts: Contexts, taken: Sequence[Tensor]
) -> list[OutputEditor]:
    """One editor, or none where no category shows a direction; taken: [M, k] spaces of the rounds before."""
    differences, bases = material.evidence.text_differences(), list[Tensor]()
    found: dict[str, Any] = {}
    for category in material.categories:
        studio.tell("output space", 0, 1)
        rows = material.of(category)
        halves, sure = material.first_half[rows], material.confidence[rows]
        space = harmful_space(differences[rows], sure, halves, material.generator("features", category))
        found[category] = space.told()
        if space.rank:
            bases.append(space.basis)
    if not bases:
        return []
    basis = join([*taken, interleave(bases)], largest_rank(differences.shape[1]))
    router = _router(material, contexts)
    found["router"] = _fires(router, material)
    return [OutputEditor(studio, start, material, basis, router, found)]


def _router(material: Material, contexts: Contexts) -> Router:
    """A probe for each category that is edited; the benign images of the baseline join the benign prompts."""
    baseline, names = material.baseline, material.categories
    harmful, benign = contexts.sides(names, held=False)
    held_harmful, held_benign = contexts.sides(names, held=True)
    benign = torch.cat([benign, baseline.first[baseline.fit]])
    held_benign = torch.cat([held_benign, baseline.first[~baseline.fit]])
    return fit_router(harmful, benign, held_harmful, held_benign, baseline.mean)


def _fires(router: Router, material: Material) -> dict[str, float]:
    """Share of held-out prompts on which the router fires, harmful and benign."""
    baseline, held = material.baseline, ~material.first_half
    sides = {"harmful": material.evidence.first()[0][held], "benign": baseline.first[~baseline.fit]}
    fired = {name: router.fires(rows - baseline.mean) for name, rows in sides.items()}
    return {name: float(flags.double().mean()) for name, flags in fired.items()}
