"""What a look learns from: pictures on their way, as the model's own codebook draws them for the router's prompts.

Nobody judges them: what a picture begins like is told by what was asked for, in whatever words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.collect.router_data import PromptStates, RouterData, by_concept, mixed
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed

EVERY = 2  # one in so many of a concept's prompts is drawn


@dataclass(frozen=True)
class HalfwayData:
    """begun: what a look after so many tokens sees, one state [M] a picture: the mean feature of its first tokens."""

    after: int
    begun: RouterData


def draw_halfway_data(
    runner: ModelRunner, harmful: Mapping[str, Sequence[Prompt]], benign: Sequence[Prompt], seed: int
) -> HalfwayData:
    """Draw pictures of harmful prompts and of as many harmless ones, their rewrites among these, half of each picture.

    A concept needs a picture for each of the router's PARTS: more than EVERY (PARTS - 1) prompts.
    """
    groups = by_concept(harmful)
    sets = [texts[::EVERY] for texts in groups.values()]
    sets.append(mixed(harmful, benign, seed)[: sum(map(len, sets))])
    after = runner.model.facts.tokens // 2
    means = _sketched(runner, [text for texts in sets for text in texts], after, seed)
    seen = torch.ones(len(means), 1, dtype=torch.bool)
    parts = zip(torch.split(means[:, None], [*map(len, sets)]), torch.split(seen, [*map(len, sets)]), strict=True)
    *begun, quiet = [PromptStates(*part) for part in parts]
    found: dict[str, dict[str, PromptStates]] = {category: {} for category in harmful}
    for (category, concept), each in zip(groups, begun, strict=True):
        found[category][concept] = each
    return HalfwayData(after, RouterData(found, quiet))


def _sketched(runner: ModelRunner, prompts: Sequence[str], after: int, seed: int) -> Tensor:
    """Mean features [n, M] of the first `after` tokens of a picture a prompt."""
    seeds = [derived_seed(seed, "sketch", i) for i in range(len(prompts))]
    tokens = runner.tokens("sketches", prompts, seeds, runner.base)[:, :after]
    parts = []
    for start in range(0, len(prompts), runner.batch):
        runner.tell("read sketches", start, len(prompts))
        some = slice(start, start + runner.batch)
        parts.append(runner.model.features(prompts[some], tokens[some]).mean(1).cpu())
    return torch.cat(parts)
