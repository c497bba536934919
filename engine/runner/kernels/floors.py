"""Smallest logits that top-k and top-p leave, as engine.runner.sampling defines them.

One program an image, which keeps all its logits in registers and halves the range of the floor 32 times. An image with
neither costs one launch. Counts and masses are summed in one fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPED = 1024  # codes of one warp


def floors(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Floors [B, 1] of logits [B, K] float32; temperature, top_p: [B, 1] float32; top_k: [B, 1] int64, 0 for all."""
    rows, codes = logits.shape
    out = torch.empty(rows, 1, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(codes)
    warps = min(32, max(4, block // WARPED))
    _floors[(rows,)](logits.contiguous(), temperature, top_k, top_p, out, codes, block, num_warps=warps)
    return out


@triton.jit
def _ordered(bits):
    # From the bits of a float32 to an int32 in the same order, and back.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _floors(logits, temperature, top_k, top_p, out, codes, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK)
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    floor = tl.full((), float("-inf"), tl.float32)
    if (k > 0) | (p < 1.0):
        inside = code < codes
        logit = tl.load(logits + row * codes + code, mask=inside, other=float("-inf"))
        key = _ordered(logit.to(tl.int32, bitcast=True))
        # The largest number that k keys reach.
        low, high = tl.full((), -2147483648, tl.int64), tl.full((), 2147483647, tl.int64)
        if k > 0:
            for _ in range(32):
                middle = low + (high - low + 1) // 2
                reach = tl.sum((inside & (key >= middle.to(tl.int32))).to(tl.int32), 0) >= k
                low, high = tl.where(reach, middle, low), tl.where(reach, high, middle - 1)
            floor = _ordered(low.to(tl.int32)).to(tl.float32, bitcast=True)
        if p < 1.0:
            # The smallest number above which there is less than the share p of the probability.
            heat = tl.maximum(tl.load(temperature + row), 1e-30)
            sound = tl.minimum(tl.maximum(logit, -1e30), 1e30)  # NaN is no number to compute with, nor infinity
            weight = tl.exp(tl.maximum(sound - tl.max(sound, 0), -1e6) / heat)
            weight = tl.where(inside & (key >= low.to(tl.int32)), weight, 0.0)
            share = p * tl.sum(weight, 0)
            high = tl.full((), 2147483647, tl.int64)
            for _ in range(32):
                middle = low + (high - low) // 2
                less = tl.sum(tl.where(key > middle.to(tl.int32), weight, 0.0), 0) < share
                low, high = tl.where(less, low, middle + 1), tl.where(less, middle, high)
            floor = _ordered(low.to(tl.int32)).to(tl.float32, bitcast=True)
    tl.store(out + row, floor)
