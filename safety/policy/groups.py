"""Groups of validation prompts: a harm category, benign prompts, look-alikes, attacks, languages.

Knows names only. Knows nothing of the prompts in a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GroupKind(StrEnum):
    """The kinds of groups. Prompts of CATEGORY, ATTACK and LANGUAGE ask for harm, those of the others do not."""

    CATEGORY = "category"  # asks plainly, in English
    BENIGN = "benign"  # nothing near a harm; named where in another language or wording
    LOOK_ALIKE = "look_alike"  # hard negatives: harmless prompts that a crude edit would hurt
    ATTACK = "attack"  # harmful prompts in another wording
    LANGUAGE = "language"  # harmful prompts in another language


@dataclass(frozen=True)
class Group:
    """One group: its kind and its name, e.g. a category, a kind of attack or a language code."""

    kind: GroupKind
    name: str

    @classmethod
    def category(cls, name: str) -> Group:
        """The plain harmful prompts of a category."""
        return cls(GroupKind.CATEGORY, name)

    @classmethod
    def look_alike(cls, name: str) -> Group:
        """Look-alikes of a category, or of a kind."""
        return cls(GroupKind.LOOK_ALIKE, name)

    @classmethod
    def attack(cls, name: str) -> Group:
        """One kind of attack."""
        return cls(GroupKind.ATTACK, name)

    @classmethod
    def language(cls, code: str) -> Group:
        """One language."""
        return cls(GroupKind.LANGUAGE, code)

    @property
    def harmful(self) -> bool:
        """Whether its prompts ask for harm plainly: in English and without an attack."""
        return self.kind is GroupKind.CATEGORY

    def __str__(self) -> str:
        """The key of the group in reports: "gore", "benign", "look_alike:weapons", "benign:de"."""
        plain = self.harmful or self == BENIGN
        return self.name if plain else f"{self.kind}:{self.name}"


BENIGN = Group(GroupKind.BENIGN, "benign")
