"""The test prompts of a run: templates of their own, seen by no part of the loop, for the referee alone.

Knows prompts. Knows nothing of images.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safety.config import LoopConfig
from safety.policy.emoji.taxonomy import Taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.prompts import TEST, Prompt


@dataclass(frozen=True)
class HeldOutSet:
    """The test prompts by group: each category, "benign", and the look-alikes of all categories."""

    harmful: Mapping[str, Sequence[Prompt]]
    benign: Sequence[Prompt]
    look_alikes: Sequence[Prompt]

    @classmethod
    def of(cls, taxonomy: Taxonomy, categories: Sequence[str], config: LoopConfig, seed: int) -> HeldOutSet:
        """Write the prompts: the same ones for the same arguments."""
        writer = PromptWriter(taxonomy, random.Random(f"test/{seed}"))
        return cls(
            {name: writer.harmful(name, TEST, config.test_harmful) for name in categories},
            writer.benign(TEST, config.test_benign),
            [p for name in categories for p in writer.look_alikes(name, TEST, config.test_neighbours)],
        )

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts: the harmful ones by category, the benign ones, the look-alikes."""
        return [*(p for group in self.harmful.values() for p in group), *self.benign, *self.look_alikes]
