"""Numbers of rows that a product on a CPU is padded to. None of them changes a bit of a row.

oneDNN caches memory for each number that it meets, and a server meets them all: these are few enough to warm up. In
float32 every row is summed in one order. In bfloat16 the order depends on the processor and may depend on the number of
rows; so those numbers are used that this processor multiplies as it does LARGEST, tried once for each size of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

FLOAT32 = (*range(2, 33, 2), 40, 48, 56, 64, 80, 96, 128, 192, 256)
BFLOAT16 = (2, 4, 8, 16, 32)
LARGEST = BFLOAT16[-1]
PACKED_FOR = 16  # rows that oneDNN packs for: any number of rows may be multiplied

Multiply = Callable[[Tensor], Tensor]


def packed(weight: Tensor) -> Tensor:
    """Return a weight [outputs, inputs] in oneDNN's layout."""
    layout: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
    return layout


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply x [.., inputs] by a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def sizes_of(outputs: int, inputs: int, dtype: torch.dtype) -> Sequence[int]:
    """Numbers of rows that a layer multiplies with the current number of threads."""
    return FLOAT32 if dtype == torch.float32 else _bfloat16_sizes(outputs, inputs, torch.get_num_threads())


@cache
def _bfloat16_sizes(outputs: int, inputs: int, threads: int) -> tuple[int, ...]:
    # `threads` is the current number: oneDNN may share out sums otherwise among others.
    with torch.inference_mode():
        x, row = _cancelling(inputs)
        weight = packed(row.bfloat16().expand(outputs, -1).contiguous())
        return equal_sizes(lambda part: multiply(part, weight, None), x.bfloat16())


def equal_sizes(product: Multiply, x: Tensor) -> tuple[int, ...]:
    """Return the numbers of rows, LARGEST included, whose products of x [LARGEST, inputs] have the same bits."""
    right = product(x)
    return tuple(
        rows
        for rows in BFLOAT16
        if torch.equal(product(x[:rows]), right[:rows]) and torch.equal(product(x[-rows:]), right[-rows:])
    )


def _cancelling(inputs: int) -> tuple[Tensor, Tensor]:
    """Rows x [LARGEST, inputs] and a weight [1, inputs] whose products come to 0 but for rounding, in mixed order.

    So the sum is what the order has left: another order shows in nearly every row, which bfloat16 would else hide.
    """
    noise, half = torch.Generator().manual_seed(0), inputs // 2
    x, row = (torch.randn(rows, inputs, generator=noise).bfloat16().float() for rows in (LARGEST, 1))
    order = torch.randperm(inputs, generator=noise)
    x[:, order[half : 2 * half]], row[:, order[half : 2 * half]] = -x[:, order[:half]], row[:, order[:half]]
    return x, row
