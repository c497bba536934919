"""Choosing the next image token: guidance is done, what remains is temperature, top-k and the draw itself.

The noise is counter-based: a pure function of (seed, step, code), the same on every device and in every batch. So a
row's choice follows from its own logits, seed and step, whoever its batch mates are. Holds no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model import Sampling

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: successive multiples of it spread evenly
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # with shifts 30, 27, 31: the splitmix64 finaliser


def choose(logits: Tensor, samplings: Sequence[Sampling], step: int) -> Tensor:
    """Draw one token a row: argmax(logits / T + Gumbel noise), which samples the softmax of logits / T exactly.

    logits: [B, K] float32; row b is drawn as samplings[b] says, and greedily where its temperature is 0.
    Returns [B] int64 in [0, K).
    """
    heat = torch.tensor([s.temperature for s in samplings], device=logits.device)[:, None]
    noise = gumbel([s.seed for s in samplings], step, logits.shape[1], logits.device)
    # Scaling the noise, not the logits, needs no division: argmax(l / T + n) = argmax(l + T n), also at T = 0.
    return (_keep_top(logits, samplings) + torch.where(heat > 0, heat * noise, 0.0)).argmax(1)


def gumbel(seeds: Sequence[int], step: int, codes: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise [B, codes] float32; row b is a function of (seeds[b] mod 2^64, step) only."""
    keys = torch.tensor([_signed(_mix(_mix(s & _WORD) + step)) for s in seeds], device=device)[:, None]
    counters = torch.arange(1, codes + 1, device=device) * _signed(_GOLDEN)
    bits = _shift(_mix_tensor(keys + counters), 11) | 1  # 53 bits, never zero
    # A small u decides who wins, and float32 is finest there; u that rounds to 1 gives -inf: never chosen.
    u = bits.float() * 2.0**-53
    return -torch.log(-torch.log1p(-u))


def _keep_top(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Put -inf in place of all but the top_k logits of the rows that ask for it."""
    rows = [b for b, s in enumerate(samplings) if 0 < s.top_k < logits.shape[1]]
    if not rows:
        return logits
    kept = logits.clone()
    for b in rows:
        floor = logits[b].topk(samplings[b].top_k).values[-1]
        kept[b] = logits[b].masked_fill(logits[b] < floor, -torch.inf)
    return kept


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
