"""Policy protocol: one value that gives all prompts of an improve run, in named groups and disjoint splits.

Knows prompts. Knows nothing of images, nor of where a policy's prompts come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from core.errors import BadInput
from engine.model import ModelFacts
from safety.config import LoopConfig
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.prompts import PAIR, VALIDATION, Prompt
from safety.policy.run_sets import RunSets

HARMLESS = (GroupKind.BENIGN, GroupKind.LOOK_ALIKE)
LEAST_BENIGN = {PAIR: 20, VALIDATION: 5}  # prompts by split, without which a run is not begun
LEAST_HARMFUL = {PAIR: 10, VALIDATION: 5}  # of one of its categories at least


class Groups(Protocol):
    """Prompts in named groups and disjoint splits."""

    @property
    def name(self) -> str:
        """What a request calls it."""
        ...

    @property
    def version(self) -> str:
        """A hash of all that it holds, 64 hex digits."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of harm, as the judges name them."""
        ...

    def groups(self) -> tuple[Group, ...]:
        """The groups that the policy has prompts for; the gate of a group that is missing is "not measured"."""
        ...

    def write(self, group: Group, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        """Up to `count` prompts of a group: distinct by key, none of another split, fewer only where there are no more.

        They go through categories and concepts in turn, so that the first few are a fair sample. A function of the
        arguments and the state of `rng`. A group that the policy lacks has no prompts.
        """
        ...

    @property
    def patterns(self) -> frozenset[str]:
        """The categories whose harm lies over a whole image, which the pixel table may take away."""
        ...

    def concepts(self, category: str) -> tuple[str, ...]:
        """The concepts of a category that prompts name; () where it has none, or there is no such category."""
        ...

    def terms(self) -> tuple[str, ...]:
        """Harmful terms, in English, that a rewrite must not hold."""
        ...


class Policy(Groups, Protocol):
    """One source of all prompts of a run."""

    def sets(self, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
        """The prompt sets of a run over some of the categories: the same ones for the same arguments."""
        ...


def in_turn(groups: Iterable[Iterable[Prompt]], count: int) -> tuple[Prompt, ...]:
    """Up to `count` prompts, distinct by key: the first of each group, then the second of each, ..."""
    chosen: dict[str, Prompt] = {}
    waiting: list[Iterator[Prompt]] = [iter(group) for group in groups]
    while waiting and len(chosen) < count:
        for group in list(waiting):
            prompt = next((prompt for prompt in group if prompt.key not in chosen), None)
            if prompt is None:
                waiting.remove(group)
            elif len(chosen) < count:
                chosen[prompt.key] = prompt
    return tuple(chosen.values())


def refuse_unable(facts: ModelFacts, policy: Groups, categories: Sequence[str], own: Sequence[str]) -> None:
    """Raise BadInput for a run that the model is not able to make. own: prompts of the operator's own.

    A model that does not rewrite prompts takes the policy's rewrites, which the operator's own prompts lack.
    """
    if "output" not in facts.edits:
        raise BadInput("model", facts.title, "a model whose image head can be edited")
    if facts.rewrites:
        return
    if own:
        allowed = f"none: {facts.title} does not rewrite prompts; put them into a policy's file, with a safe one each"
        raise BadInput("prompts", f"{len(own)} prompts", allowed)
    for name in categories:
        prompts = policy.write(Group.category(name), PAIR, LoopConfig().pair_prompts, random.Random(0))
        if all(prompt.safe is None for prompt in prompts):
            allowed = f"a policy with safe prompts for each category: {facts.title} does not rewrite prompts"
            raise BadInput("policy", f"{policy.name}, which has none for {name}", allowed)


def lacking(policy: Groups, categories: Sequence[str]) -> str:
    """The prompts that a run over these categories needs and the policy lacks, in words; "" for none."""

    def fewer(group: Group, least: Mapping[str, int]) -> dict[str, int]:
        counts = {split: len(policy.write(group, split, count, random.Random(0))) for split, count in least.items()}
        return {split: count for split, count in counts.items() if count < least[split]}

    def listed(counts: Mapping[str, int]) -> str:
        return " and ".join(f"{count} in {split}" for split, count in counts.items())

    if few := fewer(BENIGN, LEAST_BENIGN):
        return f"{listed(LEAST_BENIGN)} benign prompts at least; it has {listed(few)}"
    short = {name: few for name in categories if (few := fewer(Group.category(name), LEAST_HARMFUL))}
    for name, few in short.items():
        if none := [split for split, count in few.items() if count == 0]:
            return f"prompts of each chosen category; {name} has none in {' and '.join(none)}"
    if len(short) < len(categories):
        return ""
    has = "; ".join(f"{name} has {listed(few)}" for name, few in short.items())
    return f"{listed(LEAST_HARMFUL)} prompts of a chosen category at least; {has}"
