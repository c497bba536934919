"""Choosing the next image token: classifier-free guidance, temperature, top-k and the draw itself.

The noise is counter-based: a pure function of (seed, step, code), the same on every device and in every batch. So a
image's choice follows from its own logits, seed and step, whoever its batch mates are. Holds no state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import Sampling

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: successive multiples of it spread evenly
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # with shifts 30, 27, 31: the splitmix64 finaliser


@dataclass(frozen=True)
class CfgRows:
    """Classifier-free guidance of B images: [B] int64, the rows of their logits, and [B, 1] float32, their scales.

    An image without guidance is its own unconditional one, at the scale 1.
    """

    conditional: Tensor
    unconditional: Tensor
    scales: Tensor


@dataclass(frozen=True)
class SamplingTensors:
    """The samplings of B images as tensors on the device, so that a step asks nothing of the host.

    seeds: [B] int64, mixed; heat: [B, 1] float32, the temperatures; kept: [B, 1] int64, how many codes their top-k
    keeps, or 0 for all; deepest: the largest of these.
    """

    seeds: Tensor
    temperature: Tensor
    kept: Tensor
    deepest: int


def counted(sampling: Sampling, codes: int) -> tuple[int, int]:
    """The mixed seed of an image among K codes, and how many its top-k keeps, as in Draws."""
    return _signed(_mix(sampling.seed & _WORD)), sampling.top_k if sampling.top_k < codes else 0


def apply_cfg(logits: Tensor, guides: CfgRows) -> Tensor:
    """Logits [R, K] float32 of rows -> [B, K] of images: unconditional + scale * (conditional - unconditional)."""
    if logits.is_cuda:
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        return kernels.apply_cfg(logits, guides.conditional, guides.unconditional, guides.scales)
    unconditional = logits[guides.unconditional]
    return unconditional + guides.scales * (logits[guides.conditional] - unconditional)


def sample(logits: Tensor, draws: SamplingTensors, steps: Tensor) -> Tensor:
    """Draw one token an image: argmax(logits / T + Gumbel noise), which samples the softmax of logits / T exactly.

    logits: [B, K] float32, guided; image b is drawn as draws say, at its step steps[b], and greedily where its
    temperature is 0. Returns [B] int64 in [0, K).
    """
    # Scaling the noise, not the logits, needs no division: argmax(l / T + n) = argmax(l + T n), also at T = 0.
    logits = _keep_top(logits, draws)
    if logits.is_cuda:
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        return kernels.draw(logits, draws.seeds, steps, draws.temperature)
    noise = gumbel(draws.seeds, steps, logits.shape[1])
    return (logits + torch.where(draws.temperature > 0, draws.temperature * noise, 0.0)).argmax(1)


def gumbel(seeds: Tensor, steps: Tensor, codes: int) -> Tensor:
    """Standard Gumbel noise [B, codes] float32; row b is a function of (seeds[b], steps[b]) only."""
    keys = _mix_tensor(seeds + steps + _signed(_GOLDEN))[:, None]
    counters = torch.arange(1, codes + 1, device=seeds.device) * _signed(_GOLDEN)
    bits = _shift(_mix_tensor(keys + counters), 11) | 1  # 53 bits, never zero
    # A small u decides who wins, and float32 is finest there; u that rounds to 1 gives -inf: never chosen.
    u = bits.float() * 2.0**-53
    return -torch.log(-torch.log1p(-u))


def _keep_top(logits: Tensor, draws: SamplingTensors) -> Tensor:
    """Put -inf in place of all but the top_k logits of the images that ask for it."""
    if not draws.deepest:
        return logits
    floors = logits.topk(draws.deepest).values.gather(1, (draws.kept - 1).clamp_(min=0))
    return logits.masked_fill((draws.kept > 0) & (logits < floors), -torch.inf)


def _mix(word: int) -> int:
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * _MULTIPLIERS[0]) & _WORD
    word = ((word ^ (word >> 27)) * _MULTIPLIERS[1]) & _WORD
    return word ^ (word >> 31)


def _mix_tensor(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _signed(_MULTIPLIERS[0])  # int64 products wrap
    words = (words ^ _shift(words, 27)) * _signed(_MULTIPLIERS[1])
    return words ^ _shift(words, 31)


def _shift(words: Tensor, by: int) -> Tensor:
    """Logical right shift; the tensor operator copies the sign bit in."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word
