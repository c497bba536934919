"""Products by weights that float16 holds exactly: half the bytes to read, with every sum in float32, by FBGEMM.

Few rows wait for the weights, so a product of them takes less than half as long. Made only where it has the same bits
as oneDNN's: both add the products of a row in their order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_INPUTS = 512  # FBGEMM begins a new sum after so many
TRIED = (1, 2, 5, 16, 32)  # numbers of rows whose bits are compared

Product = Callable[[Tensor], Tensor]  # [.., inputs] -> [.., outputs]


def half_product(weight: Tensor, bias: Tensor | None, right: Product) -> Product | None:
    """Return a product by float32 weights kept in float16; None where it would differ from `right` in a bit."""
    if weight.dtype != torch.float32 or weight.shape[1] > MOST_INPUTS or not has_fbgemm():
        return None
    if not torch.equal(weight.half().float(), weight):
        return None
    with torch.inference_mode():
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

        def product(x: Tensor) -> Tensor:
            multiplied: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
            return multiplied

        noise = torch.randn(max(TRIED), weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = right(noise)
        same = all(torch.equal(product(noise[:rows]), expected[:rows]) for rows in TRIED)
    return product if same else None


def has_fbgemm() -> bool:
    """Whether torch has the products of half weights on this machine."""
    return "fbgemm" in torch.backends.quantized.supported_engines
