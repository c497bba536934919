"""Classifier-free guidance and Gumbel-max sampling, as engine.runner.sampling defines them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1024  # codes among which one program takes the argmax


def apply_cfg(logits: Tensor, conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance: logits [R, K] float32, their rows [B] int64 and scales [B, 1] -> [B, K] float32."""
    images, codes = conditional.shape[0], logits.shape[1]
    out = logits.new_empty(images, codes)
    _apply_cfg[(images, triton.cdiv(codes, CHUNK))](logits, conditional, unconditional, scales, out, codes, CHUNK)
    return out


def sample(logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor, floors: Tensor) -> Tensor:
    """Gumbel-max sampling as in engine.runner.sampling: logits [B, K] float32, temperature [B, 1] -> [B] int64.

    floors: [B, 1] float32, below which no logit is sampled.
    """
    rows, codes = logits.shape
    chunks = triton.cdiv(codes, CHUNK)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    best_code = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _sample[(rows, chunks)](logits.contiguous(), seeds, steps, temperature, floors, best, best_code, codes, CHUNK)
    _argmax[(rows,)](best, best_code, out, chunks, triton.next_power_of_2(chunks), num_warps=1)
    return out


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
def _sample(logits, seeds, steps, temperature, floors, best, best_code, codes, CHUNK: tl.constexpr):
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
    logit = tl.load(logits + row * codes + code, mask=code < codes, other=float("-inf"))
    score = tl.where(logit >= tl.load(floors + row), logit + noise, float("-inf"))
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
