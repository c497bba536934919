"""What a router learns from: first features of many prompts, harmful by category, their rewrites, and benign ones.

No image is drawn for them, so there can be many more than there are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.prompts import Prompt
from safety.studio import Studio


@dataclass(frozen=True)
class Contexts:
    """First features [., M] float32 after prompts. Every second row is for fitting, the others are held out.

    harmful: by category. benign: the rewrites of all harmful prompts, and benign prompts.
    """

    harmful: Mapping[str, Tensor]
    benign: Tensor

    def sides(self, categories: Sequence[str], held: bool) -> tuple[list[Tensor], Tensor]:
        """The rows to fit on, or the held-out ones: of each category, and the benign ones."""
        return [self.harmful[name][int(held) :: 2] for name in categories], self.benign[int(held) :: 2]


def read_contexts(studio: Studio, harmful: Mapping[str, Sequence[Prompt]], benign: Sequence[Prompt]) -> Contexts:
    """Read all prompts; kept for a resume."""

    def read() -> dict[str, Tensor]:
        rewrites = [prompt.safe for group in harmful.values() for prompt in group]
        texts = {name: [prompt.text for prompt in group] for name, group in harmful.items()}
        # The benign ones are mixed, so that both halves hold rewrites of every category.
        mixed = [*rewrites, *(prompt.text for prompt in benign)]
        order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0)).tolist()
        found = {f"harmful-{name}": _first(studio, prompts) for name, prompts in texts.items()}
        return found | {"benign": _first(studio, [mixed[i] for i in order])}

    kept = studio.keep.tensors("contexts", read)
    return Contexts({name: kept[f"harmful-{name}"] for name in harmful}, kept["benign"])


def _first(studio: Studio, prompts: Sequence[str]) -> Tensor:
    parts = []
    for start in range(0, len(prompts), studio.batch):
        studio.tell("contexts", start, len(prompts))
        parts.append(studio.model.first_features(prompts[start : start + studio.batch]).cpu())
    return torch.cat(parts)
