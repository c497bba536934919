"""Linear layers in the layout that their processor multiplies fastest: what a token costs is reading these weights.

On the CPU oneDNN packs the weights once; a GPU has a kernel of ours, for up to MOST rows. Besides being fast for few
rows, their products do not depend on how many rows are multiplied together, bit for bit; those of torch do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16  # rows to pack for: any number of rows may be multiplied
MOST = 512  # rows that our kernel multiplies on a GPU: with more of them torch is faster
# Numbers of rows that are multiplied at once on a CPU; others are padded. oneDNN keeps 0.58 MB for each that it meets,
# and a server meets them all: these are few enough to be made at the start. In bfloat16 it is one, since how sums are
# made depends on the number there, and how differs between processors.
SIZES = {
    torch.float32: (*range(2, 33, 2), 40, 48, 56, 64, 80, 96, 128, 192, 256),
    torch.bfloat16: (32,),
}


class Norm(NamedTuple):
    """A root-mean-square norm over the last dimension, times gain [inputs]."""

    gain: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [.., inputs]."""
        if x.is_cuda:
            from engine.runner import kernels  # needs triton, which comes with torch for a GPU

            return kernels.norm(x, self.gain, self.epsilon)
        return F.rms_norm(x, x.shape[-1:], self.gain, self.epsilon)


class Linear:
    """x -> x weight^T + bias, for inference: no gradient flows through it."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Take the weights of `nn.Linear` layers with one input, stacked: outputs follow each other in their order."""
        weight = _stacked([layer.weight.detach() for layer in layers])
        self._bias = None if layers[0].bias is None else _stacked([layer.bias.detach() for layer in layers])
        self._packed = can_pack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self._packed else weight
        self._on_gpu = weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Multiply [.., inputs] to [.., outputs], and add `plus`, of that shape."""
        if self._suits(x):
            from engine.runner import kernels

            return kernels.multiply(x, self._weight, self._bias, plus)
        return self._multiply(x) if plus is None else plus + self._multiply(x)

    def gated(self, x: Tensor) -> Tensor:
        """Multiply [.., inputs] to [.., outputs / 2]: silu of the first half of the outputs times the second half."""
        if self._suits(x):
            from engine.runner import kernels

            return kernels.gated(x, self._weight)
        gate, up = self._multiply(x).chunk(2, -1)
        return F.silu(gate) * up

    def _suits(self, x: Tensor) -> bool:
        """Whether our kernel multiplies x."""
        return self._on_gpu and x.numel() <= MOST * x.shape[-1]

    def warm(self, rows: int) -> None:
        """Have oneDNN make all that it keeps for products of up to so many rows with this number of threads."""
        if self._packed:
            width, dtype = self._weight.shape[1], self._weight.dtype
            for size in SIZES[dtype][: bisect_left(SIZES[dtype], rows) + 1]:
                self._product(torch.zeros(size, width, dtype=dtype))

    def _multiply(self, x: Tensor) -> Tensor:
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        sizes = SIZES[x.dtype]
        if x.numel() // x.shape[-1] in sizes:
            return self._product(x)
        products = [self._padded(rows, sizes) for rows in torch.split(x.flatten(0, -2), sizes[-1])]
        return torch.cat(products).view(*x.shape[:-1], self._weight.shape[0])

    def _padded(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Multiply rows [R, inputs] as the next size."""
        count = len(rows)
        return self._product(F.pad(rows, (0, 0, 0, sizes[bisect_left(sizes, count)] - count)))[:count]

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies such weights on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
