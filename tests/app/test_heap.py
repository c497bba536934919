"""The heap of a server's process: what lies free between what stays goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from app.background.heap import ONE_HEAP

# Blocks of 100 kB come from the heap; a kilobyte that stays lies behind each, so that the heap's end never gets free.
HOLES = """
import psutil
from app.background.heap import trim
taken = [(bytearray(b"x") * 100_000, bytearray(1_000)) for _ in range(1_000)]
kept = [small for _, small in taken]
del taken
before = psutil.Process().memory_info().rss
trim()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system's heap can be trimmed")
def test_free_memory_between_what_stays_goes_back() -> None:
    freed = subprocess.run([sys.executable, "-c", HOLES], env=ONE_HEAP, capture_output=True, text=True, check=True)
    assert int(freed.stdout) > 80e6  # of 100
