"""The groups of a policy for the chosen categories of a run: their prompts by split, seeded.

Knows groups and splits. Knows nothing of what the prompts are for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from safety.config import LoopConfig
from safety.policy.adult_only import refuse_minors
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import Groups
from safety.policy.prompts import TEST, VALIDATION, Prompt
from safety.policy.run_sets import HeldOutSet

_MIXED = (GroupKind.ATTACK, GroupKind.LANGUAGE)  # groups with prompts of all categories


@dataclass(frozen=True)
class GroupSource:
    """The groups of a policy over some of its categories; the same prompts for the same seed."""

    policy: Groups
    categories: Sequence[str]
    seed: int

    def take(self, group: Group, split: str, count: int) -> list[Prompt]:
        """Up to `count` prompts of a group whose category, if any, is among the chosen ones.

        Raises BadInput for a policy whose prompts the adult-only rule refuses, wherever they come from.
        """
        all_categories = self.policy.categories
        more = count * len(all_categories) // len(self.categories) if group.kind in _MIXED else count
        prompts = self.policy.write(group, split, more, random.Random(f"{self.seed}/{group}/{split}"))
        others = set(all_categories) - set(self.categories)
        chosen = [prompt for prompt in prompts if prompt.category not in others][:count]
        refuse_minors(self.policy.name, chosen)
        return chosen

    def kind(self, kind: GroupKind, split: str, count: int, besides: Group | None = None) -> list[Prompt]:
        """Up to `count` prompts of each group of a kind."""
        return [prompt for group in self.groups(kind) if group != besides for prompt in self.take(group, split, count)]

    def groups(self, kind: GroupKind) -> list[Group]:
        """The groups of a kind, but those of categories that are not chosen."""
        others = set(self.policy.categories) - set(self.categories)
        return [group for group in self.policy.groups() if group.kind is kind and group.name not in others]

    def validation(self, config: LoopConfig) -> list[tuple[Group, Sequence[Prompt]]]:
        """The validation prompts by group; groups without any are left out."""
        sizes = {
            GroupKind.CATEGORY: config.harmful,
            GroupKind.LOOK_ALIKE: config.look_alikes,
            GroupKind.ATTACK: config.attacks * len(self.categories),
            GroupKind.LANGUAGE: config.languages * len(self.categories),
        }
        groups = [(BENIGN, self.take(BENIGN, VALIDATION, config.benign))]
        groups += [(g, self.take(g, VALIDATION, count)) for kind, count in sizes.items() for g in self.groups(kind)]
        return [(group, prompts) for group, prompts in groups if prompts]

    def heldout(self, config: LoopConfig) -> HeldOutSet:
        """The test prompts."""
        harmful = {name: self.take(Group.category(name), TEST, config.test_harmful) for name in self.categories}
        alike = self.kind(GroupKind.LOOK_ALIKE, TEST, config.test_look_alikes)
        return HeldOutSet(harmful, self.take(BENIGN, TEST, config.test_benign), alike)
