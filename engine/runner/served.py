"""The protocol of a model that a server can serve: an ImageModel with a running batch.

Families implement it; the scheduler and the service know it and no family.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.model import ImageModel
from engine.runner.batch import RunningBatch
from engine.runner.step.lookahead import LOOKAHEAD


class Served(ImageModel, Protocol):
    """A model whose images can join and leave at any step."""

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, as ImageSequence takes them. Raises BadInput as check_prompt; any thread may call."""

    def running_batch(self, kv_rows: int, lookahead: int = LOOKAHEAD) -> RunningBatch:
        """Reserve `kv_rows` KV rows in which images of any readable prompt can be drawn; see RunningBatch."""

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [-1, 1] of its first tokens [n], n >= 1, grey where none are."""

    def encode(self, images: Tensor) -> Tensor | None:
        """Codes [B, N] int64 of images [B, 3, H, W] in [-1, 1] by the model's own table; None without an encoder."""

    def kv_rows(self) -> int:
        """Number of KV rows that fit the device. Raises BadModel where there is no room for an image."""
