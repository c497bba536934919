"""Triton kernels for the decode step (RMSNorm, GEMM, attention, guidance, sampling) and GroupNorm in the VQ decoder.

All are batch-invariant: each sum is taken in one fixed order, whatever the tile and the number of rows. A step of few
images is bound by reading the weights, so that little else may run between two products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 128  # positions in one split of a row's KV cache; fixed, so that sums are taken in one order
LANES = 16  # partial sums within a split: each takes every sixteenth position
SPREAD = 5  # programs over the splits of a row: most rows have no more
CHAIN_LIMIT = 4096  # outputs up to which a product is summed in four chains
STRIP = 4096  # elements of an image that one program normalises
CHUNK = 1024  # codes among which one program takes the argmax


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


def attend(heads: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, KV cache write and attention of one more token of each row.

    heads: [R, n + 2 h, d], the query heads, then the key heads, then the value heads, d a power of 2; keys, values:
    [R or more, h, S, d], written at position lengths[r] of row r; lengths: [R or more] int64; cos, sin: [positions, d].
    Returns [R, n d].
    """
    rows, all_heads, width = heads.shape
    kv_heads, positions = keys.shape[1], keys.shape[2]
    q_heads, splits = all_heads - 2 * kv_heads, triton.cdiv(positions, SPLIT)
    parts = torch.empty(rows, q_heads, splits, width, dtype=torch.float32, device=heads.device)
    sums = torch.empty(rows, q_heads, splits, 2, dtype=torch.float32, device=heads.device)
    out = heads.new_empty(rows, q_heads * width)
    _attend[(rows * q_heads, min(splits, SPREAD))](
        heads, keys, values, lengths, cos, sin, parts, sums, positions, splits, width**-0.5,
        q_heads, kv_heads, width, SPLIT, LANES, num_warps=2,
    )  # fmt: skip
    _join[(rows * q_heads,)](
        parts, sums, lengths, out, splits, q_heads, width, SPLIT, triton.next_power_of_2(splits), num_warps=1
    )
    return out


def rotary(heads: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the queries and keys of T more tokens of each row, and KV cache write.

    heads: [R, T, n + 2 h, d]; the others as in `attend`: row r's tokens take the positions from lengths[r] on. Returns
    the queries [R, T, n, d].
    """
    rows, tokens, all_heads, width = heads.shape
    kv_heads, positions = keys.shape[1], keys.shape[2]
    queries = heads.new_empty(rows, tokens, all_heads - 2 * kv_heads, width)
    _rotary[(rows * tokens,)](
        heads, queries, keys, values, lengths, cos, sin, tokens, positions,
        all_heads - 2 * kv_heads, kv_heads, width, triton.next_power_of_2(all_heads), num_warps=8,
    )  # fmt: skip
    return queries


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """GroupNorm of one image x [1, C, H, W], with many programs a group; torch has one."""
    x = x.contiguous()
    channels, area = x.shape[1], x.shape[2] * x.shape[3]
    size = channels // groups * area
    chunks = triton.cdiv(size, STRIP)
    moments = torch.empty(groups, chunks, 2, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    _moments[(groups, chunks)](x, moments, size, STRIP)
    _group_norm[(channels, triton.cdiv(area, STRIP))](
        x, weight, bias, moments, out, area, channels // groups, size, chunks, epsilon, STRIP,
        triton.next_power_of_2(chunks),
    )  # fmt: skip
    return out


def apply_cfg(logits: Tensor, conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance: logits [R, K] float32, their rows [B] int64 and scales [B, 1] -> [B, K] float32."""
    images, codes = conditional.shape[0], logits.shape[1]
    out = logits.new_empty(images, codes)
    _apply_cfg[(images, triton.cdiv(codes, CHUNK))](logits, conditional, unconditional, scales, out, codes, CHUNK)
    return out


def sample(logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor) -> Tensor:
    """Gumbel-max sampling as in engine.runner.sampling: logits [B, K] float32, temperature [B, 1] -> [B] int64."""
    rows, codes = logits.shape
    chunks = triton.cdiv(codes, CHUNK)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    best_code = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _sample[(rows, chunks)](logits.contiguous(), seeds, steps, temperature, best, best_code, codes, CHUNK)
    _argmax[(rows,)](best, best_code, out, chunks, triton.next_power_of_2(chunks), num_warps=1)
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


@triton.jit
def _rotated(head, i, cosine, sine, D: tl.constexpr):
    # Rotary embedding of a head [d], rounded to the dtype of the cache.
    own = tl.load(head + i).to(tl.float32)
    other = tl.load(head + (i + D // 2) % D).to(tl.float32)
    return (own * cosine + tl.where(i < D // 2, -other, other) * sine).to(head.dtype.element_ty).to(tl.float32)


@triton.jit
def _attend(
    heads, keys, values, lengths, cos, sin, parts, sums, positions, splits, scale,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // Q_HEADS, tl.program_id(0) % Q_HEADS
    length = tl.load(lengths + row).to(tl.int32)
    i = tl.arange(0, D)
    cosine = tl.load(cos + length * D + i).to(tl.float32)
    sine = tl.load(sin + length * D + i).to(tl.float32)
    own = heads + row * (Q_HEADS + 2 * KV_HEADS) * D
    query = _rotated(own + head * D, i, cosine, sine, D) * scale
    key_head = head // (Q_HEADS // KV_HEADS)
    cache = (row * KV_HEADS + key_head).to(tl.int64) * positions * D
    for split in range(tl.program_id(1), length // SPLIT + 1, tl.num_programs(1)):
        # Lanes are joined at the end of a split: before, none waits for another.
        highest = tl.full((LANES,), -1e30, tl.float32)  # below any score, and finite: it is subtracted from
        total = tl.zeros((LANES,), tl.float32)
        weighted = tl.zeros((LANES, D), tl.float32)
        begin = split * SPLIT
        for first in tl.range(begin, tl.minimum(begin + SPLIT, length), LANES, num_stages=3):
            position = first + tl.arange(0, LANES)
            inside = position < length
            at = cache + position[:, None] * D + i[None, :]
            key = tl.load(keys + at, mask=inside[:, None], other=0.0).to(tl.float32)
            value = tl.load(values + at, mask=inside[:, None], other=0.0).to(tl.float32)
            score = tl.where(inside, tl.sum(query[None, :] * key, 1), float("-inf"))
            peak = tl.maximum(highest, score)
            share, shrunk = tl.exp(score - peak), tl.exp(highest - peak)
            weighted = weighted * shrunk[:, None] + share[:, None] * value
            total = total * shrunk + share
            highest = peak
        top = tl.max(highest)
        lane = tl.exp(highest - top)
        all_total = tl.sum(lane * total)
        all_weighted = tl.sum(lane[:, None] * weighted, 0)
        if length < begin + SPLIT:  # the token itself is among these positions
            key = _rotated(own + (Q_HEADS + key_head) * D, i, cosine, sine, D)
            value = tl.load(own + (Q_HEADS + KV_HEADS + key_head) * D + i).to(tl.float32)
            if head % (Q_HEADS // KV_HEADS) == 0:
                tl.store(keys + cache + length * D + i, key.to(keys.dtype.element_ty))
                tl.store(values + cache + length * D + i, value.to(values.dtype.element_ty))
            score = tl.sum(query * key)
            peak = tl.maximum(top, score)
            all_total = all_total * tl.exp(top - peak) + tl.exp(score - peak)
            all_weighted = all_weighted * tl.exp(top - peak) + tl.exp(score - peak) * value
            top = peak
        part = tl.program_id(0) * splits + split
        tl.store(parts + part * D + i, all_weighted)
        tl.store(sums + part * 2, top)
        tl.store(sums + part * 2 + 1, all_total)


@triton.jit
def _join(
    parts, sums, lengths, out, splits,
    Q_HEADS: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    inside = split <= tl.load(lengths + program // Q_HEADS) // SPLIT
    part = program * splits + split
    highest = tl.load(sums + part * 2, mask=inside, other=float("-inf"))
    share = tl.exp(highest - tl.max(highest))
    total = tl.sum(share * tl.load(sums + part * 2 + 1, mask=inside, other=0.0))
    i = tl.arange(0, D)
    weighted = tl.load(parts + part[:, None] * D + i[None, :], mask=inside[:, None], other=0.0)
    tl.store(out + program * D + i, (tl.sum(share[:, None] * weighted, 0) / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["tokens"])
def _rotary(
    heads, queries, keys, values, lengths, cos, sin, tokens, positions,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    position = tl.load(lengths + row) + token % tokens
    i = tl.arange(0, D)[None, :]
    cosine, sine = tl.load(cos + position * D + i).to(tl.float32), tl.load(sin + position * D + i).to(tl.float32)
    head = tl.arange(0, HEADS)[:, None]
    own = heads + (token * (Q_HEADS + 2 * KV_HEADS) + head) * D
    inside = head < Q_HEADS + 2 * KV_HEADS
    values_in = tl.load(own + i, mask=inside, other=0.0)
    other = tl.load(own + (i + D // 2) % D, mask=inside, other=0.0).to(tl.float32)
    rotated = values_in.to(tl.float32) * cosine + tl.where(i < D // 2, -other, other) * sine
    rotated = rotated.to(heads.dtype.element_ty)
    tl.store(queries + (token * Q_HEADS + head) * D + i, rotated, mask=head < Q_HEADS)
    offset = (row * KV_HEADS + (head - Q_HEADS) % KV_HEADS) * positions + position
    tl.store(keys + offset * D + i, rotated, mask=(head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS))
    tl.store(values + offset * D + i, values_in, mask=(head >= Q_HEADS + KV_HEADS) & inside)


@triton.jit
def _moments(x, moments, size, STRIP: tl.constexpr):
    group, chunk = tl.program_id(0), tl.program_id(1)
    i = chunk * STRIP + tl.arange(0, STRIP)
    inside = i < size
    values = tl.load(x + group.to(tl.int64) * size + i, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values) / tl.minimum(size - chunk * STRIP, STRIP)
    centred = tl.where(inside, values - mean, 0.0)
    at = moments + (group * tl.num_programs(1) + chunk) * 2
    tl.store(at, mean)
    tl.store(at + 1, tl.sum(centred * centred))


@triton.jit
def _group_norm(
    x, weight, bias, moments, out, area, group_channels, size, chunks, epsilon,
    STRIP: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    inside = chunk < chunks
    at = moments + (channel // group_channels * chunks + chunk) * 2
    count = tl.where(inside, tl.minimum(size - chunk * STRIP, STRIP), 0).to(tl.float32)
    means = tl.load(at, mask=inside, other=0.0)
    mean = tl.sum(count * means) / size
    # Variance of parts with unequal means: Chan, Golub and LeVeque, 1979.
    squares = tl.sum(tl.load(at + 1, mask=inside, other=0.0) + count * (means - mean) * (means - mean))
    scale = tl.rsqrt(squares / size + epsilon) * tl.load(weight + channel).to(tl.float32)
    i = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    offset = channel.to(tl.int64) * area + i
    values = tl.load(x + offset, mask=i < area, other=0.0).to(tl.float32)
    normal = (values - mean) * scale + tl.load(bias + channel).to(tl.float32)
    tl.store(out + offset, normal.to(out.dtype.element_ty), mask=i < area)


@triton.jit
def _mix(word):
    # The splitmix64 finaliser of engine.runner.sampling.
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def _apply_cfg(logits, conditional, unconditional, scales, out, codes, CHUNK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    code = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = code < codes
    cond = tl.load(logits + tl.load(conditional + image) * codes + code, mask=inside)
    uncond = tl.load(logits + tl.load(unconditional + image) * codes + code, mask=inside)
    tl.store(out + image * codes + code, uncond + tl.load(scales + image) * (cond - uncond), mask=inside)


@triton.jit
def _sample(logits, seeds, steps, temperature, best, best_code, codes, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0), tl.program_id(1)
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    key = _mix((tl.load(seeds + row) + tl.load(steps + row)).to(tl.uint64) + golden)
    code = chunk * CHUNK + tl.arange(0, CHUNK)
    bits = (_mix(key + (code + 1).to(tl.uint64) * golden) >> 11) | 1
    x = -(bits.to(tl.float32) * 2.0**-53)
    # log1p(x), exact near 0, where the winners are: log(w) x / (w - 1) of w = 1 + x takes its rounding back.
    rounded = 1.0 + x
    gap = rounded - 1.0
    logarithm = tl.where(gap == 0.0, x, tl.log(rounded) * x / tl.where(gap == 0.0, 1.0, gap))
    heat = tl.load(temperature + row)
    noise = tl.where(heat > 0.0, -heat * tl.log(-logarithm), 0.0)
    score = tl.load(logits + row * codes + code, mask=code < codes, other=float("-inf")) + noise
    # NaN too, or a chunk of it alone would choose a code out of range.
    score = tl.where((code < codes) & (score == score), score, float("-inf"))
    top, index = tl.max(score, 0, return_indices=True)
    tl.store(best + row * tl.num_programs(1) + chunk, top)
    tl.store(best_code + row * tl.num_programs(1) + chunk, (chunk * CHUNK + index).to(tl.int64))


@triton.jit
def _argmax(best, best_code, out, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    of = tl.argmax(tl.load(best + row * chunks + chunk, mask=chunk < chunks, other=float("-inf")), 0)
    tl.store(out + row, tl.load(best_code + row * chunks + of))
