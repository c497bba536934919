"""Linear layers in the layout that their processor multiplies fastest: what a token costs is reading these weights.

On the CPU oneDNN packs the weights once. Besides being fast for few rows, its products do not depend on how many rows
are multiplied together, bit for bit; those of `torch.nn.functional.linear` there do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16  # rows to pack for: any number of rows may be multiplied


class Linear:
    """x -> x weight^T + bias, for inference: no gradient flows through it."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Take the weights of `nn.Linear` layers with one input, stacked: outputs follow each other in their order."""
        weight = _stacked([layer.weight.detach() for layer in layers])
        self._bias = None if layers[0].bias is None else _stacked([layer.bias.detach() for layer in layers])
        self._packed = can_pack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [.., inputs] to [.., outputs]."""
        if self._packed:
            alone = x.dtype == torch.bfloat16 and x.numel() == x.shape[-1]
            # Where the processor has no bfloat16 of its own a single row is summed in another order than several.
            rows = x.expand(2, *x.shape) if alone else x
            product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
            return product[0] if alone else product
        return F.linear(x, self._weight, self._bias)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies such weights on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
