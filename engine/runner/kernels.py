"""What a GPU computes otherwise than torch would, in Triton: a step's norms, products, attention, draw; and pictures.

A step of few images takes as long as reading its weights, so little may lie between two products. No row's result
depends on the other rows, nor on how many there are: every sum is made in one order, whatever the tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 128  # places in a part of a row: always as many, so that its sums are made in one order
LANES = 16  # of which each sees every sixteenth place of a part
SPREAD = 5  # programs over the parts of a row: most rows have no more
NARROW = 4096  # outputs up to which a product is summed in four chains
STRIP = 4096  # numbers of an image that one program normalises
CHUNK = 1024  # codes among which one program chooses


class Tile(NamedTuple):
    """What one program multiplies: `rows` x `columns` outputs, `depth` inputs at a time, `stages` of them at once.

    Where a product is summed in chains: 256 inputs with 16 rows, 64 with more.
    """

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int


def norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of x [.., H], times gain [H]."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    _norm[(x.numel() // width,)](x, gain, out, epsilon, width, triton.next_power_of_2(width))
    return out


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
    """X [.., inputs] times weight [outputs, inputs], plus bias [outputs] and plus [.., outputs], summed in float32."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    _launch(x, weight, bias, plus, out, gated=False)
    return out


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """silu(x gate) * (x up) of x [.., inputs]; weight [2 outputs, inputs] is gate and up. Returns [.., outputs]."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0] // 2)
    _launch(x, weight, None, None, out, gated=True)
    return out


def attend(heads: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention of one more token of each row: turns its query and key, keeps key and value, and attends.

    heads: [R, n + 2 h, d], the queries' heads, then the keys', then the values', d a power of 2; keys, values: [R or
    more, h, S, d], into which place lengths[r] of row r is written; lengths: [R or more] int64; cos, sin: [positions,
    d]. Returns [R, n d].
    """
    rows, every, width = heads.shape
    kept, places = keys.shape[1], keys.shape[2]
    count, splits = every - 2 * kept, triton.cdiv(places, SPLIT)
    parts = torch.empty(rows, count, splits, width, dtype=torch.float32, device=heads.device)
    sums = torch.empty(rows, count, splits, 2, dtype=torch.float32, device=heads.device)
    out = heads.new_empty(rows, count * width)
    _attend[(rows * count, min(splits, SPREAD))](
        heads, keys, values, lengths, cos, sin, parts, sums, places, splits, width**-0.5,
        count, kept, width, SPLIT, LANES, num_warps=2,
    )  # fmt: skip
    _join[(rows * count,)](
        parts, sums, lengths, out, splits, count, width, SPLIT, triton.next_power_of_2(splits), num_warps=1
    )
    return out


def turn(heads: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the queries and keys of T more tokens of each row, and keeps keys and values.

    heads: [R, T, n + 2 h, d]; the others as in `attend`: row r's tokens take the places from lengths[r] on. Returns the
    queries [R, T, n, d].
    """
    rows, count, every, width = heads.shape
    kept, places = keys.shape[1], keys.shape[2]
    queries = heads.new_empty(rows, count, every - 2 * kept, width)
    _turn[(rows * count,)](
        heads, queries, keys, values, lengths, cos, sin, count, places,
        every - 2 * kept, kept, width, triton.next_power_of_2(every), num_warps=8,
    )  # fmt: skip
    return queries


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Group norm of one image x [1, C, H, W], as torch computes it, but with many programs a group."""
    x = x.contiguous()
    channels, area = x.shape[1], x.shape[2] * x.shape[3]
    size = channels // groups * area
    chunks = triton.cdiv(size, STRIP)
    moments = torch.empty(groups, chunks, 2, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    _moments[(groups, chunks)](x, moments, size, STRIP)
    _grouped[(channels, triton.cdiv(area, STRIP))](
        x, weight, bias, moments, out, area, channels // groups, size, chunks, epsilon, STRIP,
        triton.next_power_of_2(chunks),
    )  # fmt: skip
    return out


def apply_cfg(logits: Tensor, conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """engine.runner.sampling's guidance: logits [R, K] float32, rows [B] int64 and scales [B, 1] -> [B, K] float32."""
    images, codes = conditional.shape[0], logits.shape[1]
    out = logits.new_empty(images, codes)
    _guide[(images, triton.cdiv(codes, CHUNK))](logits, conditional, unconditional, scales, out, codes, CHUNK)
    return out


def draw(logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor) -> Tensor:
    """Gumbel-max draw as in engine.runner.sampling: logits [B, K] float32, heat [B, 1] -> [B] int64."""
    rows, codes = logits.shape
    chunks = triton.cdiv(codes, CHUNK)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    where = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _draw[(rows, chunks)](logits.contiguous(), seeds, steps, temperature, best, where, codes, CHUNK)
    _pick[(rows,)](best, where, out, chunks, triton.next_power_of_2(chunks), num_warps=1)
    return out


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, out: Tensor, gated: bool) -> None:
    x = x.contiguous()
    inputs, outputs = x.shape[-1], out.shape[-1]
    rows = x.numel() // inputs
    chained = outputs <= NARROW and not gated
    tile = _tile(rows, chained)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns),)
    _multiply[grid](
        x, weight, bias, plus, out, rows, outputs, inputs, chained, gated, bias is not None, plus is not None,
        tile.rows, tile.columns, tile.depth, num_stages=tile.stages, num_warps=tile.warps,
    )  # fmt: skip


def _tile(rows: int, chained: bool) -> Tile:
    """The fastest of those tried on an H200 with the sizes of Janus-Pro-1B."""
    if rows <= 16:
        return Tile(16, 16, 256, 6, 4) if chained else Tile(16, 32, 256, 3, 4)
    if rows <= 64:
        return Tile(64, 16, 64, 3, 4) if chained else Tile(64, 32, 128, 4, 4)
    if rows <= 256:
        return Tile(64, 32, 64, 3, 4) if chained else Tile(64, 64, 64, 4, 4)
    return Tile(64, 64, 64, 2, 4) if chained else Tile(128, 128, 64, 3, 8)


@triton.jit
def _norm(x, gain, out, epsilon, width, W: tl.constexpr):
    i = tl.arange(0, W)
    inside = i < width
    at = tl.program_id(0).to(tl.int64) * width + i
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + epsilon)
    scaled = values * scale * tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x, weight, bias, plus, out, rows, outputs, inputs,
    CHAINED: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, PLUS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # Programs of the same columns follow each other: the weights of a tile come from memory once.
    tiles = tl.cdiv(rows, M)
    row = (tl.program_id(0) % tiles * M + tl.arange(0, M)).to(tl.int64)
    column = (tl.program_id(0) // tiles * N + tl.arange(0, N)).to(tl.int64)
    some_rows, some_columns = row < rows, column < outputs
    if CHAINED:
        if M == 16:
            first = _chains_at_once(x, weight, row, column, some_rows, some_columns, inputs, M, N, K)
        else:
            first = _chains_in_turn(x, weight, row, column, some_rows, some_columns, inputs, M, N, K)
    else:
        step = tl.arange(0, K)
        from_x = x + row[:, None] * inputs + step[None, :]
        from_weight = weight + column[None, :] * inputs + step[:, None]
        up = outputs.to(tl.int64) * inputs
        first = tl.zeros((M, N), tl.float32)
        second = tl.zeros((M, N), tl.float32)
        for k in range(0, inputs, K):
            left = k + step < inputs
            taken = tl.load(from_x + k, mask=some_rows[:, None] & left[None, :], other=0.0)
            mask = left[:, None] & some_columns[None, :]
            first = tl.dot(taken, tl.load(from_weight + k, mask=mask, other=0.0), first)
            if GATED:
                second = tl.dot(taken, tl.load(from_weight + up + k, mask=mask, other=0.0), second)
    if BIAS:
        first += tl.load(bias + column, mask=some_columns, other=0.0).to(tl.float32)[None, :]
    if GATED:
        first = first / (1.0 + tl.exp(-first)) * second
    at = row[:, None] * outputs + column[None, :]
    inside = some_rows[:, None] & some_columns[None, :]
    if PLUS:
        first += tl.load(plus + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, first.to(out.dtype.element_ty), mask=inside)


# A sum is a chain of steps, each of which waits for the one before, and with few rows a narrow product takes as long as
# its chain. So there are four: of every 256 inputs each takes 64, and they are joined as (0 + 1) + (2 + 3).


@triton.jit
def _chains_at_once(
    x, weight, row, column, some_rows, some_columns, inputs, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    # Each of four warps makes one chain, since a batched product is shared out so.
    step = tl.arange(0, 4)[:, None] * (K // 4) + tl.arange(0, K // 4)[None, :]
    from_x = x + row[None, :, None] * inputs + step[:, None, :]
    from_weight = weight + column[None, None, :] * inputs + step[:, :, None]
    sums = tl.zeros((4, M, N), tl.float32)
    for k in range(0, inputs, K):
        left = k + step < inputs
        taken = tl.load(from_x + k, mask=some_rows[None, :, None] & left[:, None, :], other=0.0)
        by = tl.load(from_weight + k, mask=left[:, :, None] & some_columns[None, None, :], other=0.0)
        sums = tl.dot(taken, by, sums)
    even, odd = tl.split(tl.reshape(tl.permute(sums, (1, 2, 0)), (M, N, 2, 2)))
    low, high = tl.split(even + odd)
    return low + high


@triton.jit
def _chains_in_turn(
    x, weight, row, column, some_rows, some_columns, inputs, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    step = tl.arange(0, K)
    from_x = x + row[:, None] * inputs + step[None, :]
    from_weight = weight + column[None, :] * inputs + step[:, None]
    first = tl.zeros((M, N), tl.float32)
    second = tl.zeros((M, N), tl.float32)
    third = tl.zeros((M, N), tl.float32)
    fourth = tl.zeros((M, N), tl.float32)
    for k in range(0, inputs, 4 * K):
        first = _more(first, from_x, from_weight, some_rows, some_columns, k, inputs, K)
        second = _more(second, from_x, from_weight, some_rows, some_columns, k + K, inputs, K)
        third = _more(third, from_x, from_weight, some_rows, some_columns, k + 2 * K, inputs, K)
        fourth = _more(fourth, from_x, from_weight, some_rows, some_columns, k + 3 * K, inputs, K)
    return (first + second) + (third + fourth)


@triton.jit
def _more(total, from_x, from_weight, some_rows, some_columns, k, inputs, K: tl.constexpr):
    left = k + tl.arange(0, K) < inputs
    taken = tl.load(from_x + k, mask=some_rows[:, None] & left[None, :], other=0.0)
    return tl.dot(taken, tl.load(from_weight + k, mask=left[:, None] & some_columns[None, :], other=0.0), total)


@triton.jit
def _turned(head, i, cosine, sine, D: tl.constexpr):
    # A head [d] under its rotary position, rounded as it is kept.
    own = tl.load(head + i).to(tl.float32)
    other = tl.load(head + (i + D // 2) % D).to(tl.float32)
    return (own * cosine + tl.where(i < D // 2, -other, other) * sine).to(head.dtype.element_ty).to(tl.float32)


@triton.jit
def _attend(
    heads, keys, values, lengths, cos, sin, parts, sums, places, splits, scale,
    COUNT: tl.constexpr, KEPT: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // COUNT, tl.program_id(0) % COUNT
    length = tl.load(lengths + row).to(tl.int32)
    i = tl.arange(0, D)
    cosine = tl.load(cos + length * D + i).to(tl.float32)
    sine = tl.load(sin + length * D + i).to(tl.float32)
    own = heads + row * (COUNT + 2 * KEPT) * D
    query = _turned(own + head * D, i, cosine, sine, D) * scale
    key_head = head // (COUNT // KEPT)
    cache = (row * KEPT + key_head).to(tl.int64) * places * D
    for split in range(tl.program_id(1), length // SPLIT + 1, tl.num_programs(1)):
        # Lanes are joined at the end of a part: before, none waits for another.
        highest = tl.full((LANES,), -1e30, tl.float32)  # below any score, and finite: it is subtracted from
        total = tl.zeros((LANES,), tl.float32)
        seen = tl.zeros((LANES, D), tl.float32)
        begin = split * SPLIT
        for first in tl.range(begin, tl.minimum(begin + SPLIT, length), LANES, num_stages=3):
            place = first + tl.arange(0, LANES)
            there = place < length
            at = cache + place[:, None] * D + i[None, :]
            key = tl.load(keys + at, mask=there[:, None], other=0.0).to(tl.float32)
            value = tl.load(values + at, mask=there[:, None], other=0.0).to(tl.float32)
            score = tl.where(there, tl.sum(query[None, :] * key, 1), float("-inf"))
            peak = tl.maximum(highest, score)
            share, shrunk = tl.exp(score - peak), tl.exp(highest - peak)
            seen = seen * shrunk[:, None] + share[:, None] * value
            total = total * shrunk + share
            highest = peak
        top = tl.max(highest)
        lane = tl.exp(highest - top)
        all_total = tl.sum(lane * total)
        all_seen = tl.sum(lane[:, None] * seen, 0)
        if length < begin + SPLIT:  # the token itself is among these places
            key = _turned(own + (COUNT + key_head) * D, i, cosine, sine, D)
            value = tl.load(own + (COUNT + KEPT + key_head) * D + i).to(tl.float32)
            if head % (COUNT // KEPT) == 0:
                tl.store(keys + cache + length * D + i, key.to(keys.dtype.element_ty))
                tl.store(values + cache + length * D + i, value.to(values.dtype.element_ty))
            score = tl.sum(query * key)
            peak = tl.maximum(top, score)
            all_total = all_total * tl.exp(top - peak) + tl.exp(score - peak)
            all_seen = all_seen * tl.exp(top - peak) + tl.exp(score - peak) * value
            top = peak
        part = tl.program_id(0) * splits + split
        tl.store(parts + part * D + i, all_seen)
        tl.store(sums + part * 2, top)
        tl.store(sums + part * 2 + 1, all_total)


@triton.jit
def _join(
    parts, sums, lengths, out, splits,
    COUNT: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    there = split <= tl.load(lengths + program // COUNT) // SPLIT
    part = program * splits + split
    highest = tl.load(sums + part * 2, mask=there, other=float("-inf"))
    share = tl.exp(highest - tl.max(highest))
    total = tl.sum(share * tl.load(sums + part * 2 + 1, mask=there, other=0.0))
    i = tl.arange(0, D)
    seen = tl.load(parts + part[:, None] * D + i[None, :], mask=there[:, None], other=0.0)
    tl.store(out + program * D + i, (tl.sum(share[:, None] * seen, 0) / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["count"])
def _turn(
    heads, queries, keys, values, lengths, cos, sin, count, places,
    COUNT: tl.constexpr, KEPT: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // count
    place = tl.load(lengths + row) + token % count
    i = tl.arange(0, D)[None, :]
    cosine, sine = tl.load(cos + place * D + i).to(tl.float32), tl.load(sin + place * D + i).to(tl.float32)
    head = tl.arange(0, HEADS)[:, None]
    own = heads + (token * (COUNT + 2 * KEPT) + head) * D
    there = head < COUNT + 2 * KEPT
    values_in = tl.load(own + i, mask=there, other=0.0)
    other = tl.load(own + (i + D // 2) % D, mask=there, other=0.0).to(tl.float32)
    turned = values_in.to(tl.float32) * cosine + tl.where(i < D // 2, -other, other) * sine
    turned = turned.to(heads.dtype.element_ty)
    tl.store(queries + (token * COUNT + head) * D + i, turned, mask=head < COUNT)
    kept = (row * KEPT + (head - COUNT) % KEPT) * places + place
    tl.store(keys + kept * D + i, turned, mask=(head >= COUNT) & (head < COUNT + KEPT))
    tl.store(values + kept * D + i, values_in, mask=(head >= COUNT + KEPT) & there)


@triton.jit
def _moments(x, moments, size, STRIP: tl.constexpr):
    group, chunk = tl.program_id(0), tl.program_id(1)
    i = chunk * STRIP + tl.arange(0, STRIP)
    inside = i < size
    values = tl.load(x + group.to(tl.int64) * size + i, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values) / tl.minimum(size - chunk * STRIP, STRIP)
    apart = tl.where(inside, values - mean, 0.0)
    at = moments + (group * tl.num_programs(1) + chunk) * 2
    tl.store(at, mean)
    tl.store(at + 1, tl.sum(apart * apart))


@triton.jit
def _grouped(
    x, weight, bias, moments, out, area, alike, size, chunks, epsilon, STRIP: tl.constexpr, CHUNKS: tl.constexpr
):
    channel = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    there = chunk < chunks
    at = moments + (channel // alike * chunks + chunk) * 2
    count = tl.where(there, tl.minimum(size - chunk * STRIP, STRIP), 0).to(tl.float32)
    means = tl.load(at, mask=there, other=0.0)
    mean = tl.sum(count * means) / size
    # Of parts of unequal means: Chan, Golub and LeVeque, 1979.
    squares = tl.sum(tl.load(at + 1, mask=there, other=0.0) + count * (means - mean) * (means - mean))
    scale = tl.rsqrt(squares / size + epsilon) * tl.load(weight + channel).to(tl.float32)
    i = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    where = channel.to(tl.int64) * area + i
    values = tl.load(x + where, mask=i < area, other=0.0).to(tl.float32)
    normal = (values - mean) * scale + tl.load(bias + channel).to(tl.float32)
    tl.store(out + where, normal.to(out.dtype.element_ty), mask=i < area)


@triton.jit
def _mixed(word):
    # The splitmix64 finaliser of engine.sampling.
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def _guide(logits, conditional, unconditional, scales, out, codes, CHUNK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    code = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = code < codes
    asked = tl.load(logits + tl.load(conditional + image) * codes + code, mask=inside)
    other = tl.load(logits + tl.load(unconditional + image) * codes + code, mask=inside)
    tl.store(out + image * codes + code, other + tl.load(scales + image) * (asked - other), mask=inside)


@triton.jit
def _draw(logits, seeds, steps, temperature, best, where, codes, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0), tl.program_id(1)
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    key = _mixed((tl.load(seeds + row) + tl.load(steps + row)).to(tl.uint64) + golden)
    code = chunk * CHUNK + tl.arange(0, CHUNK)
    bits = (_mixed(key + (code + 1).to(tl.uint64) * golden) >> 11) | 1
    x = -(bits.to(tl.float32) * 2.0**-53)
    # log1p(x), exact near 0, where the winners are: log(w) x / (w - 1) of w = 1 + x takes its rounding back.
    rounded = 1.0 + x
    gap = rounded - 1.0
    logarithm = tl.where(gap == 0.0, x, tl.log(rounded) * x / tl.where(gap == 0.0, 1.0, gap))
    warmth = tl.load(temperature + row)
    noise = tl.where(warmth > 0.0, -warmth * tl.log(-logarithm), 0.0)
    score = tl.load(logits + row * codes + code, mask=code < codes, other=float("-inf")) + noise
    # NaN too, or a chunk of it alone would choose a code that there is not.
    score = tl.where((code < codes) & (score == score), score, float("-inf"))
    top, index = tl.max(score, 0, return_indices=True)
    tl.store(best + row * tl.num_programs(1) + chunk, top)
    tl.store(where + row * tl.num_programs(1) + chunk, (chunk * CHUNK + index).to(tl.int64))


@triton.jit
def _pick(best, where, out, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    of = tl.argmax(tl.load(best + row * chunks + chunk, mask=chunk < chunks, other=float("-inf")), 0)
    tl.store(out + row, tl.load(where + row * chunks + of))
