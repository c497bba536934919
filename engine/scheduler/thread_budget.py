"""The CPU cores, shared between the two threads that compute: the scheduler's and the postprocessor's.

OpenMP gives every thread that computes on several cores a team of helper threads, which stays with it. While all teams
together have more threads than there are cores, helpers sleep between two products in place of spinning, and waking
costs more than the products of a step. So the two teams never exceed the cores, all other threads compute on one core
each (`cli/serve.py` starts the server so), and other work on several cores runs in a thread that ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import get_native_id

from core.wire import NICE
from engine.runner.step.team import Batch, Team, take_threads


class ThreadBudget:
    """`count` cores: postprocessing has a quarter, at least one, drawing as many of the rest as make it faster."""

    def __init__(self, count: int, tried: bool = True) -> None:
        """tried: whether to try if fewer threads draw faster. On a GPU, where they hardly matter, there is no need."""
        self._post = max(1, count // 4)
        self._beside, self._alone = Team(max(1, count - self._post), tried), Team(count + 1 - self._post, tried)
        self._team, self._postprocessing = self._alone, False

    def lower_priority(self) -> None:
        """Let the process's other threads come first: they have little to do, and a caller waits for it.

        To be called by a computing thread before it computes, so that its helper threads inherit the priority.
        """
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICE)

    @contextmanager
    def postprocessing(self) -> Iterator[None]:
        """Mark the time in which images are postprocessed."""
        self._postprocessing = True
        try:
            yield
        finally:
            self._postprocessing = False

    @property
    def draw_threads(self) -> int:
        """The number of threads that draw while nothing is postprocessed, as it is at present."""
        return self._alone.usual

    def take_to_draw(self) -> None:
        """Give the calling thread the cores to draw with: more while nothing is postprocessed."""
        self._team = self._beside if self._postprocessing else self._alone
        take_threads(self._team.size)

    def drawing(self, batch: Batch) -> AbstractContextManager[None]:
        """Draw a step of the batch within, with what `take_to_draw` gave."""
        return self._team.step(batch)

    def take_to_postprocess(self) -> None:
        """Give the calling thread the cores to postprocess with."""
        take_threads(self._post)

    def take_one(self) -> None:
        """Give the calling thread one core, for work whose rounding depends on the number of threads."""
        take_threads(1)

    def shares(self) -> Iterator[None]:
        """Give the calling thread each number of cores that a thread may have, one after the other."""
        for count in sorted({self._post, *self._beside.sizes, *self._alone.sizes}):
            take_threads(count)
            yield


def count_cores() -> int:
    """Number of physical cores that this process may use, within a container's quota (cgroup v2)."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    mine = os.sched_getaffinity(0)
    cores = {_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or n for n in mine}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(len(cores), -(-int(quota) // int(period))) if quota.isdecimal() else len(cores)


def _read(path: str) -> str:
    """The text of a file of the kernel; empty where there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
