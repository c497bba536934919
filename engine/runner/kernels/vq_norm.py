"""GroupNorm of one image in the VQ decoder, with many programs a group."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STRIP = 4096  # elements of an image that one program normalises


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
