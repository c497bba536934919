"""Training data of the router: prompt states of harmful prompts by concept, their rewrites, and benign prompts.

No image is drawn for them, so there can be many more than there are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner


@dataclass(frozen=True)
class PromptStates:
    """Last hidden states of prompts: states [n, T, H] float32; seen, bool [n, T], False at padding."""

    states: Tensor
    seen: Tensor

    def part(self, rows: Tensor | slice) -> PromptStates:
        """Some of the prompts."""
        return PromptStates(self.states[rows], self.seen[rows])


@dataclass(frozen=True)
class RouterData:
    """harmful: by category and concept. benign: the rewrites of all harmful prompts, and benign prompts."""

    harmful: Mapping[str, Mapping[str, PromptStates]]
    benign: PromptStates


def read_router_data(
    runner: ModelRunner, harmful: Mapping[str, Sequence[Prompt]], benign: Sequence[Prompt]
) -> RouterData:
    """Compute the states of all prompts, at least one a category."""
    states: dict[str, dict[str, PromptStates]] = {category: {} for category in harmful}
    for (category, concept), texts in by_concept(harmful).items():
        states[category][concept] = _read(runner, texts)
    return RouterData(states, _read(runner, mixed(harmful, benign, 0)))


def by_concept(harmful: Mapping[str, Sequence[Prompt]]) -> dict[tuple[str, str], list[str]]:
    """The texts of each category's concepts."""
    groups: dict[tuple[str, str], list[str]] = {}
    for category, prompts in harmful.items():
        for prompt in prompts:
            groups.setdefault((category, prompt.concept), []).append(prompt.text)
    return groups


def mixed(harmful: Mapping[str, Sequence[Prompt]], benign: Sequence[Prompt], seed: int) -> list[str]:
    """The rewrites of all harmful prompts and the benign ones, shuffled, so that any part holds rewrites of all."""
    rewrites = [prompt.safe for prompts in harmful.values() for prompt in prompts if prompt.safe is not None]
    texts = rewrites + [prompt.text for prompt in benign]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [texts[i] for i in order]


def _read(runner: ModelRunner, prompts: Sequence[str]) -> PromptStates:
    parts = []
    for start in range(0, len(prompts), runner.batch):
        runner.report("contexts", start, len(prompts))
        states, seen = runner.model.prompt_states(prompts[start : start + runner.batch])
        parts.append((states.cpu(), seen.cpu()))
    longest = max(seen.shape[1] for _, seen in parts)
    widened = [(pad(a, (0, 0, longest - a.shape[1], 0)), pad(b, (longest - b.shape[1], 0))) for a, b in parts]
    return PromptStates(torch.cat([a for a, _ in widened]), torch.cat([b for _, b in widened]))
