"""Policy protocol: one value that gives all prompts of an improve run, in named groups and disjoint splits.

Knows prompts. Knows nothing of images, nor of where a policy's prompts come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from safety.policy.prompts import Prompt


class Kind(StrEnum):
    """Kinds of groups. Prompts of HARMFUL, ATTACK and LANGUAGE ask for harm, those of the others do not."""

    HARMFUL = "harmful"  # asks plainly, by category
    BENIGN = "benign"  # nothing near a harm; named where the prompts are put in a language or a way of their own
    LOOK_ALIKE = "look_alike"  # harmless, and near a harm: by category, or by a name of its own
    ATTACK = "attack"  # a harm of any category put another way, by the way
    LANGUAGE = "language"  # a harm of any category in another language, by its code


HARMLESS = (Kind.BENIGN, Kind.LOOK_ALIKE)


@dataclass(frozen=True)
class PromptGroup:
    """One group of a policy's prompts. name: a category, a way, a language code; "" for plain benign prompts."""

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        """The kind, and the name behind a colon: "look_alike:weapons", "benign"."""
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


BENIGN = PromptGroup(Kind.BENIGN)


class Policy(Protocol):
    """One source of all prompts of a run."""

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

    def groups(self) -> tuple[PromptGroup, ...]:
        """The groups that the policy has prompts for; the gate of a group that is missing is "not measured"."""
        ...

    def write(self, group: PromptGroup, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        """Up to `count` prompts of a group: distinct by key, none of another split, fewer only where there are no more.

        They go through categories and concepts in turn, so that the first few are a fair sample. A function of the
        arguments and the state of `rng`. A group that the policy lacks has no prompts.
        """
        ...

    def concepts(self, category: str) -> tuple[str, ...]:
        """The concepts of a category that prompts name; () where it has none, or there is no such category."""
        ...

    def terms(self) -> tuple[str, ...]:
        """Harmful terms, in English, that a rewrite must not hold."""
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
