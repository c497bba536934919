"""RMSNorm and GEMM with bias, residual and SwiGLU. Batch-invariant: each sum is taken in one fixed order.

A step of few images is bound by reading the weights, so that little else may run between two products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHAIN_LIMIT = 4096  # outputs up to which a product is summed in four chains


class Tile(NamedTuple):
    """Tile of one GEMM program: `rows` x `columns` outputs, `depth` inputs a step, `stages` steps in flight.

    For a product summed in chains, depth is 256 with 16 rows and 64 with more.
    """

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of x [.., H], times gain [H]."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    _rms_norm[(x.numel() // width,)](x, gain, out, epsilon, width, triton.next_power_of_2(width))
    return out


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Linear: x [.., inputs] weight^T [inputs, outputs] + bias [outputs] + residual [.., outputs]; sums in float32."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    _launch(x, weight, bias, residual, out, gated=False)
    return out


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """silu(x gate) * (x up) of x [.., inputs]; weight [2 outputs, inputs] is gate and up. Returns [.., outputs]."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0] // 2)
    _launch(x, weight, None, None, out, gated=True)
    return out


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, gated: bool) -> None:
    x = x.contiguous()
    inputs, outputs = x.shape[-1], out.shape[-1]
    rows = x.numel() // inputs
    chained = outputs <= CHAIN_LIMIT and not gated
    tile = _tile(rows, chained)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns),)
    _multiply[grid](
        x, weight, bias, residual, out, rows, outputs, inputs, chained, gated, bias is not None, residual is not None,
        tile.rows, tile.columns, tile.depth, num_stages=tile.stages, num_warps=tile.warps,
    )  # fmt: skip


def _tile(rows: int, chained: bool) -> Tile:
    """Tile by number of rows, tuned on an H200 with the sizes of Janus-Pro-1B."""
    if rows <= 16:
        return Tile(16, 16, 256, 6, 4) if chained else Tile(16, 32, 256, 3, 4)
    if rows <= 64:
        return Tile(64, 16, 64, 3, 4) if chained else Tile(64, 32, 128, 4, 4)
    if rows <= 256:
        return Tile(64, 32, 64, 3, 4) if chained else Tile(64, 64, 64, 4, 4)
    return Tile(64, 64, 64, 2, 4) if chained else Tile(128, 128, 64, 3, 8)


@triton.jit
def _rms_norm(x, gain, out, epsilon, width, W: tl.constexpr):
    i = tl.arange(0, W)
    inside = i < width
    at = tl.program_id(0).to(tl.int64) * width + i
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + epsilon)
    scaled = values * scale * tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x, weight, bias, residual, out, rows, outputs, inputs,
    CHAINED: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # Programs of the same columns follow each other, so that the weights of a tile are read from memory once.
    tiles = tl.cdiv(rows, M)
    row = (tl.program_id(0) % tiles * M + tl.arange(0, M)).to(tl.int64)
    column = (tl.program_id(0) // tiles * N + tl.arange(0, N)).to(tl.int64)
    row_mask, column_mask = row < rows, column < outputs
    if CHAINED:
        if M == 16:
            first = _chains_parallel(x, weight, row, column, row_mask, column_mask, inputs, M, N, K)
        else:
            first = _chains_serial(x, weight, row, column, row_mask, column_mask, inputs, M, N, K)
    else:
        step = tl.arange(0, K)
        from_x = x + row[:, None] * inputs + step[None, :]
        from_weight = weight + column[None, :] * inputs + step[:, None]
        up = outputs.to(tl.int64) * inputs
        first = tl.zeros((M, N), tl.float32)
        second = tl.zeros((M, N), tl.float32)
        for k in range(0, inputs, K):
            k_mask = k + step < inputs
            x_tile = tl.load(from_x + k, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
            mask = k_mask[:, None] & column_mask[None, :]
            first = tl.dot(x_tile, tl.load(from_weight + k, mask=mask, other=0.0), first)
            if GATED:
                second = tl.dot(x_tile, tl.load(from_weight + up + k, mask=mask, other=0.0), second)
    if BIAS:
        first += tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if GATED:
        first = first / (1.0 + tl.exp(-first)) * second
    at = row[:, None] * outputs + column[None, :]
    inside = row_mask[:, None] & column_mask[None, :]
    if RESIDUAL:
        first += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, first.to(out.dtype.element_ty), mask=inside)


# Split-K in four fixed chains: with few rows a product of few outputs is bound by the latency of a chain of sums.
# Of every 256 inputs each chain takes 64, and the chains are joined as (0 + 1) + (2 + 3).


@triton.jit
def _chains_parallel(
    x, weight, row, column, row_mask, column_mask, inputs, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    # One chain a warp: a batched tl.dot is distributed so.
    step = tl.arange(0, 4)[:, None] * (K // 4) + tl.arange(0, K // 4)[None, :]
    from_x = x + row[None, :, None] * inputs + step[:, None, :]
    from_weight = weight + column[None, None, :] * inputs + step[:, :, None]
    sums = tl.zeros((4, M, N), tl.float32)
    for k in range(0, inputs, K):
        k_mask = k + step < inputs
        x_tile = tl.load(from_x + k, mask=row_mask[None, :, None] & k_mask[:, None, :], other=0.0)
        w_tile = tl.load(from_weight + k, mask=k_mask[:, :, None] & column_mask[None, None, :], other=0.0)
        sums = tl.dot(x_tile, w_tile, sums)
    even, odd = tl.split(tl.reshape(tl.permute(sums, (1, 2, 0)), (M, N, 2, 2)))
    low, high = tl.split(even + odd)
    return low + high


@triton.jit
def _chains_serial(
    x, weight, row, column, row_mask, column_mask, inputs, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    step = tl.arange(0, K)
    from_x = x + row[:, None] * inputs + step[None, :]
    from_weight = weight + column[None, :] * inputs + step[:, None]
    first = tl.zeros((M, N), tl.float32)
    second = tl.zeros((M, N), tl.float32)
    third = tl.zeros((M, N), tl.float32)
    fourth = tl.zeros((M, N), tl.float32)
    for k in range(0, inputs, 4 * K):
        first = _more(first, from_x, from_weight, row_mask, column_mask, k, inputs, K)
        second = _more(second, from_x, from_weight, row_mask, column_mask, k + K, inputs, K)
        third = _more(third, from_x, from_weight, row_mask, column_mask, k + 2 * K, inputs, K)
        fourth = _more(fourth, from_x, from_weight, row_mask, column_mask, k + 3 * K, inputs, K)
    return (first + second) + (third + fourth)


@triton.jit
def _more(total, from_x, from_weight, row_mask, column_mask, k, inputs, K: tl.constexpr):
    k_mask = k + tl.arange(0, K) < inputs
    x_tile = tl.load(from_x + k, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
    return tl.dot(x_tile, tl.load(from_weight + k, mask=k_mask[:, None] & column_mask[None, :], other=0.0), total)
