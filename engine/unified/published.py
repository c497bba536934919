"""The published model: what its publisher's own code, or transformers', computes for a checkpoint.

A reference to compare a served model with; a family makes it of the same weights. Knows functions and tensors. Knows
nothing of families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Greedy:
    """The likeliest codes of an image under guidance: tokens [n] int64, its first ones.

    logits: [n, K] float32, of the prompt alone, without guidance, where these tokens are read.
    """

    tokens: Tensor
    logits: Tensor

    def first(self, count: int) -> Greedy:
        """Return the first of them."""
        return Greedy(self.tokens[:count], self.logits[:count])


@dataclass(frozen=True)
class Published:
    """One checkpoint in code that is not this project's.

    source: that code, for reports. tokens: N. table: [K, D], the pixel table. greedy: prompt, guidance above 1 and n ->
    the first n tokens. decode: tokens [N] of an image -> [1, 3, H, W] float32 in [-1, 1]; None where no such code draws
    pixels.
    """

    source: str
    tokens: int
    table: Tensor
    greedy: Callable[[str, float, int], Greedy]
    decode: Callable[[Tensor], Tensor] | None
