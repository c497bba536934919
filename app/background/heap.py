"""The heap of the server's process: kept in one piece, and what is free in it goes back to the system.

Tensors of all sizes come and go beside what stays. With several heaps for its threads, as glibc has it, a server keeps
what was ever needed in each of them; of one it gives back only what lies at the end. Elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}  # for the environment that the process starts with


def trim() -> None:
    """Give back every free page: 3 to 6 ms, in which nobody else gets memory."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
