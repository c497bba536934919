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

    @classmethod
    def joined(cls, parts: Sequence[PromptStates]) -> PromptStates:
        """Several sets, at least one, as one; shorter prompts are padded on the left."""
        longest = max(one.seen.shape[1] for one in parts)
        gaps = [longest - one.seen.shape[1] for one in parts]
        states = [pad(one.states, (0, 0, gap, 0)) for one, gap in zip(parts, gaps, strict=True)]
        seen = [pad(one.seen, (gap, 0)) for one, gap in zip(parts, gaps, strict=True)]
        return cls(torch.cat(states), torch.cat(seen))


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
        states[category][concept] = read_states(runner, texts)
    return RouterData(states, read_states(runner, mixed(harmful, benign, 0)))


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


def read_states(runner: ModelRunner, prompts: Sequence[str]) -> PromptStates:
    """The states of prompts, at least one."""
    parts = []
    for start in range(0, len(prompts), runner.batch):
        runner.report("contexts", start, len(prompts))
        states, seen = runner.model.prompt_states(prompts[start : start + runner.batch])
        parts.append(PromptStates(states.cpu(), seen.cpu()))
    return PromptStates.joined(parts)
