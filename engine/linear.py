"""Linear layers in the layout that their processor multiplies fastest: what a token costs is reading these weights.

On the CPU oneDNN packs the weights once; a GPU has a kernel of ours, for up to MOST rows. Besides being fast for few
rows, their products do not depend on how many rows are multiplied together, bit for bit; those of torch do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16  # rows to pack for: any number of rows may be multiplied
MOST = 512  # rows that our kernel multiplies on a GPU: with more of them torch is faster
TOGETHER = 32  # rows that are multiplied at once in bfloat16 on a CPU
STEP = 64  # in float32 on a CPU more rows than this are multiplied as whole steps, and the rest


class Norm(NamedTuple):
    """A root-mean-square norm over the last dimension, times gain [inputs]."""

    gain: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [.., inputs]."""
        if x.is_cuda:
            from engine import kernels  # needs triton, which comes with torch for a GPU

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
            from engine import kernels

            return kernels.multiply(x, self._weight, self._bias, plus)
        return self._multiply(x) if plus is None else plus + self._multiply(x)

    def gated(self, x: Tensor) -> Tensor:
        """Multiply [.., inputs] to [.., outputs / 2]: silu of the first half of the outputs times the second half."""
        if self._suits(x):
            from engine import kernels

            return kernels.gated(x, self._weight)
        gate, up = self._multiply(x).chunk(2, -1)
        return F.silu(gate) * up

    def _suits(self, x: Tensor) -> bool:
        """Whether our kernel multiplies x."""
        return self._on_gpu and x.numel() <= MOST * x.shape[-1]

    def _multiply(self, x: Tensor) -> Tensor:
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        count = x.numel() // x.shape[-1]
        whole = count // STEP * STEP
        if x.dtype == torch.float32 and whole in (0, count):
            return self._product(x)
        rows = x.flatten(0, -2)
        if x.dtype == torch.float32:
            # oneDNN keeps half a megabyte for each number of rows that it has met: prompts come in all sizes.
            products = [self._product(rows[:whole]), self._product(rows[whole:])]
        else:
            # In bfloat16 the sums do depend on the number of rows, and how differs from processor to processor.
            padded = F.pad(rows, (0, 0, 0, -len(rows) % TOGETHER))
            products = [self._product(some) for some in torch.split(padded, TOGETHER)]
        return torch.cat(products)[: len(rows)].view(*x.shape[:-1], -1)

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
