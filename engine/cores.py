"""The processor's cores, shared between the threads that compute: two at work get half of the cores each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_native_id

import torch

STEP_BACK = 10  # by how much the priority of a computing thread is lower, in steps of nice


class Cores:
    """As many cores as torch uses where it is made. On a GPU they hardly matter."""

    def __init__(self) -> None:
        self._all, self._busy, self._lock = torch.get_num_threads(), 0, Lock()

    def step_back(self) -> None:
        """Let the process's other threads come first: they have little to do, and somebody waits for it.

        To be called by a computing thread before it computes, so that the threads that help it step back too.
        """
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, os.getpid()) + STEP_BACK)

    def shares(self) -> Iterator[None]:
        """Give the calling thread each share that it may ever have, one after the other; all cores at last."""
        for busy in (2, 1):
            _take(max(1, self._all // busy))
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the calling thread among those at work."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def share(self) -> None:
        """Give the calling thread its share for the work that it is about to do."""
        _take(max(1, self._all // max(1, self._busy)))

    def take_one(self) -> None:
        """Give the calling thread one core, for work that rounds otherwise on two."""
        _take(1)


def _take(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
