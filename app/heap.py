"""The heap of the server's process: kept in one piece, and what is free in it goes back to the system now and then.

Tensors of all sizes come and go beside what stays. With several heaps for its threads, as glibc has it, a server keeps
what was ever needed in each of them; of one it gives back only what lies at the end. Elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
from threading import Event, Thread

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}  # for the environment that the process starts with
TRIM_EVERY_S = 10.0  # it takes 3 to 6 ms, in which nobody else gets memory


def trim() -> None:
    """Give back every free page."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def trim_until(ended: Event) -> Thread:
    """Start a thread that trims until `ended`."""

    def run() -> None:
        while not ended.wait(TRIM_EVERY_S):
            trim()

    thread = Thread(target=run, name="heap")
    thread.start()
    return thread
