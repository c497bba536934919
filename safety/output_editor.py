"""Finding an edit of the output table: for each category the space of what its unsafe words add, and one router.

Any category, at either level: this table is the one that sees the text. Every category is an expert of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from codebook.errors import SafeCBError
from codebook.value import NO_EXPERT, Codebook, OutputEdit, Router
from safety.charts import spectra_png
from safety.contexts import Contexts
from safety.gates.g7_null_space import output_moved
from safety.material import Material
from safety.output_update import leading_part, refit, stack, unstack
from safety.pixel_editor import largest_rank
from safety.router import fit_router
from safety.space import harmful_space, join
from safety.studio import Studio
from safety.tune import OutputLesson, tune_output


@dataclass(frozen=True)
class OutputEditor:
    """spaces: [M, k] by category, one expert each in this order; router: decides which images get which."""

    studio: Studio
    start: Codebook
    material: Material
    spaces: Mapping[str, Tensor]
    router: Router
    found: dict[str, Any]
    table: str = "output"

    @property
    def full(self) -> bool:
        """Whether every space holds as many directions as it may."""
        return all(basis.shape[1] >= largest_rank(basis.shape[0]) for basis in self.spaces.values())

    def draft(self, strength: float) -> Codebook:
        """The start with the leading directions removed and the rest led to the safe partner in least squares."""
        material = self.material
        experts = [
            refit(
                leading_part(basis, strength),
                material.baseline.mean,
                material.evidence.lesson(material.of(category) & material.first_half),
                material.baseline.features,
                material.plan.tuned_rank,
            )
            for category, basis in self.spaces.items()
        ]
        return replace(self.start, version="draft", output=stack(experts, self.router))

    def tune(self, draft: Codebook) -> Codebook:
        """The draft with each expert's tuned part trained on the codes of the safe partner."""
        material, plan = self.material, self.material.plan
        evidence, halves = material.evidence, material.first_half
        experts: list[OutputEdit] = []
        total = plan.output_steps * len(self.spaces)
        for category, expert in zip(self.spaces, unstack(_edit_of(draft)), strict=True):
            train, check = (evidence.lesson(material.of(category) & half) for half in (halves, ~halves))
            tuned = tune_output(
                expert,
                self.studio.model.head,
                OutputLesson(train, material.baseline.features, check),
                plan.output_steps,
                plan.tuning_rows,
                material.generator("tune", self.table, category),
                self.studio.steps("tune output table", total, len(experts) * plan.output_steps),
            )
            experts.append(tuned)
        return replace(draft, output=stack(experts, self.router))

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """How much of its space any tuned part reads."""
        return max(output_moved(_edit_of(draft)), output_moved(_edit_of(tuned)))

    def told(self) -> dict[str, Any]:
        """Ranks by category, and where the router fires."""
        return {"k": sum(basis.shape[1] for basis in self.spaces.values()), **self.found}

    def pictures(self) -> dict[str, bytes]:
        """The spectrum of each category's space."""
        return {"spectrum_output.png": spectra_png(self.found)}


def _edit_of(codebook: Codebook) -> OutputEdit:
    if codebook.output is None:
        raise SafeCBError(f"codebook {codebook.version} has no output edit to tune")
    return codebook.output


def output_editors(
    studio: Studio, start: Codebook, material: Material, contexts: Contexts, taken: Mapping[str, Tensor]
) -> list[OutputEditor]:
    """One editor, or none where no category shows a direction; taken: [M, k] spaces of the rounds before."""
    differences, spaces = material.evidence.text_differences(), dict(taken)
    found: dict[str, Any] = {}
    for category in material.categories:
        studio.tell("output space", 0, 1)
        rows = material.of(category)
        halves, sure = material.first_half[rows], material.confidence[rows]
        space = harmful_space(differences[rows], sure, halves, material.generator("features", category))
        found[category] = space.told()
        if space.rank:
            earlier = [taken[category]] if category in taken else []
            spaces[category] = join([*earlier, space.basis], largest_rank(differences.shape[1]))
    if not spaces:
        return []
    studio.tell("router", 0, 1)
    named = [(i, category) for i, category in enumerate(spaces)]
    sets = [(i, states) for i, category in named for states in contexts.harmful[category].values()]
    router = fit_router([states for _, states in sets], [i for i, _ in sets], contexts.benign)
    found["router"] = _fires(router, contexts, spaces)
    return [OutputEditor(studio, start, material, spaces, router, found)]


def _fires(router: Router, contexts: Contexts, spaces: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of held-out prompts on which the router fires: of each category, and of the benign ones."""
    held = slice(1, None, 2)
    groups = {name: [states.part(held) for states in contexts.harmful[name].values()] for name in spaces}
    groups["benign"] = [contexts.benign.part(held)]
    told = {}
    for name, sets in groups.items():
        fired = [router.choose(states.states, states.seen) != NO_EXPERT for states in sets]
        told[name] = float(sum(flags.sum() for flags in fired) / sum(len(flags) for flags in fired))
    return told
