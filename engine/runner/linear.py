"""Linear layers for inference, batch-invariant and in the layout that their processor multiplies fastest.

On the CPU oneDNN packs the weights once, and half weights multiply few rows where that has the same bits. On a GPU a
kernel of ours multiplies up to MAX_ROWS rows. A row's product has the same bits whatever the number of rows; torch's
does not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runner.products import padding
from engine.runner.products.half import Product, half_product

MAX_ROWS = 512  # rows up to which our kernel multiplies on a GPU: beyond, torch is faster


class Linear:
    """x -> x weight^T + bias; no gradient flows through it.

    half: on a CPU, the product of the same bits by weights in float16, where there is one; half_rows: the numbers of
    rows that it multiplies, none until they are chosen.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Fuse `nn.Linear` layers of one input: their outputs are stacked in order."""
        weight = _stacked([layer.weight.detach() for layer in layers])
        self._bias = None if layers[0].bias is None else _stacked([layer.bias.detach() for layer in layers])
        self._packed = can_pack(weight)
        self.outputs, self.inputs = weight.shape
        self._weight = padding.packed(weight) if self._packed else weight
        self.half: Product | None = half_product(weight, self._bias, self.packed) if self._packed else None
        self.half_rows: Container[int] = frozenset()
        self._on_gpu = weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply [.., inputs] to [.., outputs], and add `residual` of that shape."""
        if self._fits_kernel(x):
            from engine.runner import kernels

            return kernels.multiply(x, self._weight, self._bias, residual)
        return self._multiply(x) if residual is None else residual + self._multiply(x)

    def gated(self, x: Tensor, activation: str = "silu") -> Tensor:
        """Gate: [.., inputs] -> [.., outputs / 2], `activation` of the first half of the outputs times the second.

        activation: "silu" or "gelu_tanh".
        """
        if activation == "silu" and self._bias is None and self._fits_kernel(x):
            from engine.runner import kernels

            return kernels.gated(x, self._weight)
        gate, up = self._multiply(x).chunk(2, -1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)

    def warm(self, rows: int) -> None:
        """Have oneDNN cache all it needs for products of up to `rows` rows with the current number of threads."""
        if self._packed:
            dtype = self._weight.dtype
            sizes = padding.sizes_of(self.outputs, self.inputs, dtype)
            for size in sizes[: bisect_left(sizes, rows) + 1]:
                if size not in self.half_rows:
                    self.packed(torch.zeros(size, self.inputs, dtype=dtype))

    def packed(self, x: Tensor) -> Tensor:
        """Multiply [R, inputs] by the packed weights, R one of `padding.sizes_of` the layer."""
        return padding.multiply(x, self._weight, self._bias)

    def _fits_kernel(self, x: Tensor) -> bool:
        """Whether our GPU kernel multiplies x."""
        return self._on_gpu and x.numel() <= MAX_ROWS * x.shape[-1]

    def _multiply(self, x: Tensor) -> Tensor:
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        rows = x.numel() // x.shape[-1]
        if self.half is not None and rows in self.half_rows:
            return self.half(x)
        sizes = padding.sizes_of(self.outputs, self.inputs, x.dtype)
        if rows in sizes:
            return self.packed(x)
        products = [self._padded(part, sizes) for part in torch.split(x.flatten(0, -2), sizes[-1])]
        return torch.cat(products).view(*x.shape[:-1], self.outputs)

    def _padded(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Multiply x [R, inputs], padded to the next size."""
        count = len(x)
        return self.packed(F.pad(x, (0, 0, 0, sizes[bisect_left(sizes, count)] - count)))[:count]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies such weights on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
