"""Products of any number of rows: few sizes, and nothing left to keep once they are warm."""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_left

import pytest
import torch

from app.background.heap import ONE_HEAP
from engine.runner.linear import SIZES, can_pack

# What malloc counts as in use, in MB, by which products of 1 to N rows make it grow, warm for N rows or cold.
GROWTH = """
import ctypes, sys
import torch
from torch import nn
from engine.runner.linear import Linear

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
linear = Linear([nn.Linear(64, 128)])
with torch.inference_mode():
    linear(torch.zeros(1, 64))
    if sys.argv[1] == "warm":
        linear.warm(int(sys.argv[2]))
    before = mallinfo()
    for rows in range(1, int(sys.argv[2]) + 1):
        linear(torch.zeros(rows, 64))
    after = mallinfo()
print((after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / 1e6)
"""


def growth(how: str, rows: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, how, str(rows)],
        env=os.environ | ONE_HEAP,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not can_pack(torch.zeros(1, 1)), reason="only oneDNN keeps something; glibc counts it"
)
def test_a_warm_product_keeps_nothing_more_whatever_is_multiplied() -> None:
    assert growth("cold", 600) > 5
    assert growth("warm", 600) < 0.5
    assert growth("warm", 21) < 0.5


def test_padding_adds_less_than_a_half_and_nothing_to_guided_images() -> None:
    sizes = SIZES[torch.float32]
    for rows in range(1, sizes[-1] + 1):
        size = sizes[bisect_left(sizes, rows)]
        assert size == rows + rows % 2 if rows <= 32 else size < 1.5 * rows
