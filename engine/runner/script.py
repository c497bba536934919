"""Script of an image: at which steps codes are drawn, how many, and at which a token is given, as an end of a line.

Knows numbers of steps and tokens. Knows nothing of what a given token means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Script:
    """tokens: N, the codes of an image. given: by step, the number of a given token, or None where codes are drawn.

    depth: codes that are drawn at a step; above 1 no token is given.
    """

    tokens: int
    given: tuple[int | None, ...]
    depth: int = 1

    @classmethod
    def plain(cls, tokens: int) -> Script:
        """Return the script of an image all of whose steps draw a code."""
        return cls(tokens, (None,) * tokens)

    @classmethod
    def deep(cls, cells: int, depth: int) -> Script:
        """Return the script of an image each of whose steps draws `depth` codes, those of one cell."""
        return cls(cells * depth, (None,) * cells, depth)

    @classmethod
    def lines(cls, rows: int, columns: int) -> Script:
        """Return the script of an image whose rows of codes end with the given token 0, but for the last row."""
        row = (*(None for _ in range(columns)), 0)
        return cls(rows * columns, (row * rows)[:-1])

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.given)

    @cached_property
    def is_plain(self) -> bool:
        """Whether every step draws one code."""
        return self.steps == self.tokens

    @cached_property
    def columns(self) -> Sequence[int]:
        """By step, how many codes are drawn before it: its column in the token table."""
        counts, count = [], 0
        for given in self.given:
            counts.append(count)
            count += self.depth * (given is None)
        return counts

    @cached_property
    def kinds(self) -> int:
        """Number of given tokens."""
        return max((given + 1 for given in self.given if given is not None), default=0)

    def step_after(self, count: int) -> int:
        """Return the first step before which `count` codes are drawn."""
        return bisect_left(self.columns, count)

    def steps_of(self, count: int) -> list[int]:
        """Return the steps at which the first `count` codes are drawn."""
        return [step for step, given in enumerate(self.given) if given is None][:count]

    def drawn(self, step: int) -> int:
        """Return how many codes are drawn after `step` steps."""
        return self.tokens if step == self.steps else self.columns[step]

    def reaches(self, count: int, step: int) -> bool:
        """Return whether the last of `step` steps, of 1 or more, draws the code of this number, counted from 1."""
        return self.drawn(step - 1) < count <= self.drawn(step)


class ScriptTensors:
    """A script as tensors on a device, so that a step takes no value from the host; for one that is not plain."""

    def __init__(self, script: Script, codes: Tensor) -> None:
        """codes: [K + G, H], as ImageHead.code_embeddings; G tokens are given."""
        first = codes.shape[0] - script.kinds
        given = [-1 if token is None else first + token for token in script.given]
        columns = [c if g is None else script.tokens for c, g in zip(script.columns, script.given, strict=True)]
        # One step more: images that are complete stand there until they leave.
        self._given = torch.tensor([*given, -1], device=codes.device)
        self.columns = torch.tensor([*columns, script.tokens], device=codes.device)
        self.is_drawn = self._given < 0

    def read(self, tokens: Tensor, steps: Tensor) -> Tensor:
        """Return the rows of `codes` that images at `steps` [n] read next: of their tokens [n], or of given ones."""
        given = self._given[steps]
        return torch.where(given < 0, tokens, given)
