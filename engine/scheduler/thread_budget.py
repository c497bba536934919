"""The processor's cores, shared between the two threads that compute: one draws, one finishes what is drawn.

OpenMP gives every thread that computes on several cores helpers of its own, which stay with it. While there are more of
all of them than cores, none spins at the end of a product until the next one begins, but sleeps, and waking costs more
than the products of a step. So the two never have more helpers than that, all other threads compute on one core each
(`cli/serve.py` starts the server so), and what else wants several does it in a thread that ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id

import torch

STEP_BACK = 10  # by how much the priority of a computing thread is lower, in steps of nice

# torch's own setter would also change what threads that have not computed yet begin with.
_set: Callable[[int], object] = getattr(ctypes.CDLL(None), "omp_set_num_threads", torch.set_num_threads)


class ThreadBudget:
    """`count` cores: finishing has a quarter, at least one, and drawing the rest. On a GPU they hardly matter."""

    def __init__(self, count: int) -> None:
        self._finish = max(1, count // 4)
        self._draw_beside, self._draw_alone = max(1, count - self._finish), count + 1 - self._finish
        self._finishing = False

    def step_back(self) -> None:
        """Let the process's other threads come first: they have little to do, and somebody waits for it.

        To be called by a computing thread before it computes, so that the threads that help it step back too.
        """
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, os.getpid()) + STEP_BACK)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Say that what is drawn is being finished."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def take_to_draw(self) -> None:
        """Give the calling thread the cores to draw with: more while nothing is being finished."""
        _take(self._draw_beside if self._finishing else self._draw_alone)

    def take_to_finish(self) -> None:
        """Give the calling thread the cores to finish with."""
        _take(self._finish)

    def take_one(self) -> None:
        """Give the calling thread one core, for work that rounds otherwise on two."""
        _take(1)

    def shares(self) -> Iterator[None]:
        """Give the calling thread each number of cores that a thread may have, one after the other."""
        for count in sorted({self._finish, self._draw_beside, self._draw_alone}):
            _take(count)
            yield


def count_cores() -> int:
    """How many cores this process may use, two threads of one counted once; within a container's quota (cgroup v2)."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    mine = os.sched_getaffinity(0)
    cores = {_told(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or n for n in mine}
    quota, _, period = _told("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(len(cores), -(-int(quota) // int(period))) if quota.isdecimal() else len(cores)


def _told(path: str) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _take(count: int) -> None:
    if torch.get_num_threads() != count:
        _set(count)
