"""Memory that a checkpoint will take, compared with what is free before one of its weights is loaded.

Knows the headers of weight files and the engine's rule for KV rows. Reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch

from core.errors import BadModel
from engine.runner.memory import CGROUP, GIB, available, free_bytes, least_free
from engine.weights.files import FLOATING, PLAIN, read_header, weight_files


@dataclass(frozen=True)
class Footprint:
    """The memory of a checkpoint on a device.

    floats: numbers of its weights, kept as `dtype`. others: bytes of what is kept as it is. kv_numbers: of one KV row.
    """

    floats: int
    others: int
    kv_numbers: int
    device: torch.device
    dtype: torch.dtype

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.floats * self.dtype.itemsize + self.others

    @property
    def image(self) -> int:
        """Bytes of the two KV rows of an image under guidance."""
        return 2 * self.kv_numbers * self.dtype.itemsize

    @property
    def least(self) -> int:
        """Bytes that must be free for a server to begin: weights, and room for the KV rows of one image."""
        return self.weights + least_free(self.device, self.image)

    def check(self, folder: Path) -> str:
        """Say what it takes and what is free. Raises BadModel, naming both and what would work, for too little."""
        free = free_bytes(self.device)
        self._compare(folder, attrgetter("least"), free, "machine" if self.device.type == "cpu" else "GPU")
        if self.device.type == "cuda":
            place = "machine, which weights pass on their way to the GPU"
            self._compare(folder, attrgetter("weights"), available(CGROUP), place)
        return f"{self}; {_gib(free)} are free"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{_gib(self.weights)} of weights as {dtype}, {_gib(self.image)} of KV rows an image under guidance"

    def _compare(self, folder: Path, needed: Callable[[Footprint], int], free: int, place: str) -> None:
        least, half = needed(self), needed(replace(self, dtype=torch.bfloat16))
        if least <= free:
            return
        fix = "a smaller model does, or more memory"
        if half < least:
            fits = "which fits" if half <= free else f"which is too much too: {fix}"
            fix = f"SAFECB_DTYPE=bfloat16 takes {_gib(half)}, {fits}"
        raise BadModel(f"{folder}: {self}: {_gib(least)} must be free on the {place}, and {_gib(free)} are; {fix}")


def footprint(
    folder: Path, more: Sequence[str], kv_numbers: int, device: torch.device, dtype: torch.dtype
) -> Footprint:
    """Weigh the checkpoint in a folder with its sub-folders `more`. Raises BadModel."""
    tensors = [tensor for file in weight_files(folder, more) for tensor in read_header(file)]
    floats = sum(tensor.count for tensor in tensors if tensor.kind in FLOATING)
    others = sum(tensor.count * PLAIN[tensor.kind] for tensor in tensors if tensor.kind not in FLOATING)
    return Footprint(floats, others, kv_numbers, device, dtype)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
