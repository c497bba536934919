"""Heap of the server process: one malloc arena, trimmed regularly (glibc only).

With one arena per thread, as by default in glibc, a server keeps the peak of each of them; of an arena glibc returns
only the free pages at its end.
"""

from __future__ import annotations

import ctypes

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}  # must be in the environment at the start of the process


def trim() -> None:
    """Return all free pages to the system. Takes milliseconds, in which other threads wait for memory."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
