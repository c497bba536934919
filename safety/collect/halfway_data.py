"""Training data of the halfway probe: half-drawn images of the router's prompts, under the base codebook.

They need no verdict: the label of an image is the concept of its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.collect.router_data import PromptStates, RouterData, by_concept, mixed
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed

EVERY = 2  # each EVERYth prompt of a concept is drawn


@dataclass(frozen=True)
class HalfwayData:
    """The input of the probe after `after` tokens: one state [M] an image, the mean feature of these tokens."""

    after: int
    states: RouterData


def draw_halfway_data(
    runner: ModelRunner, harmful: Mapping[str, Sequence[Prompt]], benign: Sequence[Prompt], seed: int
) -> HalfwayData:
    """Half-drawn images of harmful prompts and of as many harmless ones, rewrites among them.

    A concept needs an image for each of the router's PARTS.
    """
    groups = by_concept(harmful)
    sets = [texts[::EVERY] for texts in groups.values()]
    sets.append(mixed(harmful, benign, seed)[: sum(map(len, sets))])
    facts = runner.model.facts
    after = facts.tokens // 2 // facts.depth * facts.depth  # steps end there
    means = _mean_features(runner, [text for texts in sets for text in texts], after, seed)
    mask = torch.ones(len(means), 1, dtype=torch.bool)
    parts = zip(torch.split(means[:, None], [*map(len, sets)]), torch.split(mask, [*map(len, sets)]), strict=True)
    *concepts, quiet = [PromptStates(*part) for part in parts]
    states: dict[str, dict[str, PromptStates]] = {category: {} for category in harmful}
    for (category, concept), each in zip(groups, concepts, strict=True):
        states[category][concept] = each
    return HalfwayData(after, RouterData(states, quiet))


def _mean_features(runner: ModelRunner, prompts: Sequence[str], after: int, seed: int) -> Tensor:
    """Mean features [n, M] of the first `after` tokens of one image a prompt."""
    seeds = [derived_seed(seed, "sketch", i) for i in range(len(prompts))]
    tokens = runner.tokens("sketches", prompts, seeds, runner.base)[:, :after]
    parts = []
    for start in range(0, len(prompts), runner.batch):
        runner.report("read sketches", start, len(prompts))
        some = slice(start, start + runner.batch)
        parts.append(runner.model.features(prompts[some], tokens[some]).mean(1).cpu())
    return torch.cat(parts)
