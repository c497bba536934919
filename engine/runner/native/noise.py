"""Gumbel noise in C, with the bits of torch's operators. Knows seeds and steps; knows no image."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from engine.runner.native.compiled import library
from engine.runner.native.product import address

LANES = 16  # numbers of codes are a multiple of it
MODE = 0x2 | 0x100 | 0x140000  # of MKL's functions, as torch sets it: exact, no errors, denormal numbers as they are
TRIED, CODES = 3, 8192  # rows and codes whose bits are compared

Noise = Callable[[Tensor, Tensor, int], Tensor]  # seeds [B], steps [B], K -> [B, K]


@cache
def native_noise(right: Noise) -> Noise | None:
    """Return the noise `right` in C; None where there is no library, or another bit."""
    compiled = library()
    if compiled is None:
        return None
    logarithms = tuple(map(compiled.of_torch, (f"Sleef_log1pf{compiled.lanes}_u10", "vmsLn")))
    if None in logarithms:
        return None
    gumbel = compiled.source.gumbel

    def noise(seeds: Tensor, steps: Tensor, codes: int) -> Tensor:
        seeds, steps, drawn = seeds.contiguous(), steps.contiguous(), torch.empty(len(seeds), codes)
        sizes, functions = map(ctypes.c_int64, drawn.shape), map(ctypes.c_void_p, logarithms)
        threads = ctypes.c_int(torch.get_num_threads())
        gumbel(address(seeds), address(steps), *sizes, *functions, ctypes.c_int64(MODE), address(drawn), threads)
        return drawn

    seeds = torch.randint(-(2**62), 2**62, (TRIED,), generator=torch.Generator().manual_seed(0))
    steps = torch.arange(TRIED)
    return noise if torch.equal(noise(seeds, steps, CODES), right(seeds, steps, CODES)) else None
