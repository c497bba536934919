"""The prompt sets of one run: pairs, router, validation, test, retention, canaries.

Values. Knows groups. Knows nothing of where prompts come from, nor of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safety.policy.groups import Group
from safety.policy.prompts import Prompt

ByCategory = Mapping[str, Sequence[Prompt]]


@dataclass(frozen=True)
class HeldOutSet:
    """The held-out test prompts, for the referee alone: by category, benign ones, and look-alikes."""

    harmful: ByCategory
    benign: Sequence[Prompt]
    look_alikes: Sequence[Prompt]

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts: the harmful ones by category, the benign ones, the look-alikes."""
        return [*(p for group in self.harmful.values() for p in group), *self.benign, *self.look_alikes]


@dataclass(frozen=True)
class RunSets:
    """pairs: by round and category. retention: benign prompts whose images must stay. canaries: harmful ones.

    validation: by group. router, router_benign: for the router, the halfway probe and the on-policy tuning.
    """

    validation: Sequence[tuple[Group, Sequence[Prompt]]]
    retention: Sequence[Prompt]
    canaries: Sequence[Prompt]
    router: ByCategory
    router_benign: Sequence[Prompt]
    pairs: Sequence[ByCategory]
    heldout: HeldOutSet

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts of all sets; one may come several times."""
        by_category = [group for one in (self.router, *self.pairs) for group in one.values()]
        groups = (*by_category, *(group for _, group in self.validation))
        return [
            *self.retention,
            *self.canaries,
            *self.router_benign,
            *self.heldout.prompts,
            *(prompt for group in groups for prompt in group),
        ]
