"""Sampling of the next image token: classifier-free guidance, temperature, top-k, top-p and the draw itself.

The noise is counter-based: a pure function of (seed, step, code), the same on every device. So an image's token follows
from its own logits, seed and step: sampling is batch-invariant. Holds no state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import Sampling
from engine.runner.native.noise import LANES, native_noise

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: successive multiples of it spread evenly
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # with shifts 30, 27, 31: the splitmix64 finaliser
COLDEST = 1e-30  # stands for a temperature of 0 where one divides by it: all probability is that of the likeliest codes


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
    """The samplings of B images as tensors on the device, so that a step takes no value from the host.

    seeds: [B] int64, mixed; temperature, top_p: [B, 1] float32; top_k: [B, 1] int64, 0 for all codes.
    ranks: how many of an image's largest logits top-k and top-p depend on, in the image with the most; 0: in none.
    """

    seeds: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    ranks: int


def ranks_of(sampling: Sampling, codes: int) -> int:
    """How many of the largest of K logits the top-k and top-p of an image depend on."""
    if sampling.top_p < 1:
        return codes
    return sampling.top_k if sampling.top_k < codes else 0


def seed_and_top_k(sampling: Sampling, codes: int) -> tuple[int, int]:
    """The mixed seed of an image and its top-k among K codes, as in SamplingTensors."""
    return _signed(_mix(sampling.seed & _WORD)), sampling.top_k if sampling.top_k < codes else 0


def apply_cfg(logits: Tensor, rows: CfgRows) -> Tensor:
    """Logits [R, K] float32 of rows -> [B, K] of images: unconditional + scale * (conditional - unconditional)."""
    if logits.is_cuda:
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        return kernels.apply_cfg(logits, rows.conditional, rows.unconditional, rows.scales)
    unconditional, conditional = logits.index_select(0, rows.unconditional), logits.index_select(0, rows.conditional)
    return conditional.sub_(unconditional).mul_(rows.scales).add_(unconditional)


def sample(logits: Tensor, sampling: SamplingTensors, steps: Tensor) -> Tensor:
    """Sample one token an image: argmax(logits / T + Gumbel noise), an exact sample of softmax(logits / T).

    logits: [B, K] float32, guided; steps: [B] int64, each image's step. Where the temperature is 0 the choice is
    greedy. Only codes that top-k and top-p leave are sampled; see `floors`. Returns [B] int64 in [0, K).
    """
    # Scaling the noise, not the logits, needs no division: argmax(l / T + n) = argmax(l + T n), also at T = 0.
    if logits.is_cuda:
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        least = kernels.floors(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        return kernels.sample(logits, sampling.seeds, steps, sampling.temperature, least)
    return choose(logits, sampling, gumbel(sampling.seeds, steps, logits.shape[1]))


def choose(logits: Tensor, sampling: SamplingTensors, noise: Tensor) -> Tensor:
    """As `sample`, on a CPU, with the noise [B, K] of the images' steps."""
    if sampling.ranks:
        logits = logits.masked_fill(logits < floors(logits, sampling), -torch.inf)
    return torch.where(sampling.temperature > 0, sampling.temperature * noise, 0.0).add_(logits).argmax(1)


def gumbel(seeds: Tensor, steps: Tensor, codes: int) -> Tensor:
    """Standard Gumbel noise [B, codes] float32; row b is a function of (seeds[b], steps[b]) only."""
    native = None if seeds.is_cuda or codes % LANES else native_noise(_gumbel)
    return (native or _gumbel)(seeds, steps, codes)


def _gumbel(seeds: Tensor, steps: Tensor, codes: int) -> Tensor:
    """As `gumbel`, by torch's operators."""
    keys = _mix_tensor(seeds + steps + _signed(_GOLDEN))[:, None]
    counters = torch.arange(1, codes + 1, device=seeds.device) * _signed(_GOLDEN)
    bits = _shift(_mix_tensor(keys + counters), 11) | 1  # 53 bits, never zero
    # The winners have a small u, where float32 is finest; a u that rounds to 1 gives -inf and is never sampled.
    u = bits.float() * 2.0**-53
    return -torch.log(-torch.log1p(-u))


def floors(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """The smallest logit [B, 1] that top-k and top-p leave of each image's logits [B, K]; -inf for neither.

    top-k leaves the k largest logits. top-p leaves, of those, a code unless the likelier ones have a probability of
    `top_p` together, by softmax(logits / T). Equal logits stay or go together, so no order among them matters.
    """
    ranked = logits.topk(sampling.ranks).values
    least = ranked.gather(1, (sampling.top_k - 1).clamp(min=0)).where(sampling.top_k > 0, -torch.inf)
    weights = ((ranked - ranked[:, :1]) / sampling.temperature.clamp(min=COLDEST)).exp()
    # In float64 and one after the other: codes that top-k removes, and their number, change no bit.
    mass = weights.masked_fill(ranked < least, 0.0).double().cumsum(1)
    last = (mass < sampling.top_p * mass[:, -1:]).sum(1, keepdim=True)
    return ranked.gather(1, last).where(sampling.top_p < 1, least)


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
