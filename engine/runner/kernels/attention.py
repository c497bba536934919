"""Rotary embedding, KV cache write and decode attention. Batch-invariant: a row is split at fixed positions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 128  # positions in one split of a row's KV cache; fixed, so that sums are taken in one order
LANES = 16  # partial sums within a split: each takes every sixteenth position
SPREAD = 5  # programs over the splits of a row: most rows have no more


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
