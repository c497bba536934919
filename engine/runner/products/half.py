"""Products by weights that float16 holds exactly: half the bytes to read, with every sum in float32, in C or by FBGEMM.

Few rows wait for the weights, so a product of them takes less than half as long. Made only where it has the same bits
as oneDNN's: all add the products of a row in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.runner.native.product import native_product

MOST_INPUTS = 512  # FBGEMM begins a new sum after so many
SPLITS = (1, 2, 4, 8)  # in so many parts oneDNN may take a sum
TRIED = (1, 2, 5, 16, 32)  # numbers of rows whose bits are compared

Product = Callable[[Tensor], Tensor]  # [.., inputs] -> [.., outputs]


def half_product(weight: Tensor, bias: Tensor | None, right: Product) -> Product | None:
    """Return a product by float32 weights kept in float16; None where it would differ from `right` in a bit."""
    if weight.dtype != torch.float32 or not torch.equal(weight.half().float(), weight):
        return None
    with torch.inference_mode():
        noise = torch.randn(max(TRIED), weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = right(noise)
        for product in _products(weight, bias):
            if all(torch.equal(product(noise[:rows]), expected[:rows]) for rows in TRIED):
                return product
    return None


def _products(weight: Tensor, bias: Tensor | None) -> Iterator[Product]:
    """The ways to multiply by a weight, the fastest first."""
    if (native := native_product(weight, bias)) is not None:
        for parts in SPLITS:
            native.split(parts)
            yield native
    if weight.shape[1] <= MOST_INPUTS and has_fbgemm():
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

        def product(x: Tensor) -> Tensor:
            multiplied: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
            return multiplied

        yield product


def has_fbgemm() -> bool:
    """Whether torch has the products of half weights on this machine."""
    return "fbgemm" in torch.backends.quantized.supported_engines
