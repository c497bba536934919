"""Team size: how many threads draw fastest at present, found by trying.

The threads of a step wait for its slowest one, product after product. Where another process uses a core, even in part,
a step of several threads can take ten times as long as one of fewer. The kernel says nothing of it in advance, so now
and then a step is drawn with another number of threads and timed beside the one before it. Tokens are the same with any
number (docs/explanation/engine.md, Guarantees).

Knows seconds and numbers of threads. Knows nothing of what a step computes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Protocol

import torch

PAIRS = 4  # steps of a trial, each beside one of the usual size
GAIN = 0.95  # of the usual time; a trial that takes more changes nothing
HOPELESS = 1.5  # times the usual time: the trial ends
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 4.0  # of drawing between trials: doubled after each that changes nothing
MOST_LOST = 0.04  # of the time: after a trial that took much longer the wait is longer as well

# torch's own setter would also change what threads that have not computed yet begin with.
_set: Callable[[int], object] = getattr(ctypes.CDLL(None), "omp_set_num_threads", torch.set_num_threads)


class Batch(Protocol):
    """A batch as far as its steps can be compared: KV rows, and tokens that an image gets in a step, on average."""

    @property
    def rows(self) -> int:
        """See above."""

    @property
    def expected(self) -> float:
        """See above; of the last step."""


class Team:
    """The number of threads of the next step, `size`, and of all but those that are tried, `usual`: at first `most`."""

    def __init__(self, most: int, tried: bool = True) -> None:
        """tried: whether steps may be drawn with fewer threads than `most`."""
        self.sizes = sorted({most, max(1, most // 2), 1}, reverse=True) if tried else [most]
        self.most = self.size = self.usual = most
        self._others = self.sizes[1:]  # those to be tried, in turn
        self._before: tuple[int, float] = (0, 0.0)  # work and seconds of the last step of the usual size
        self._ratios: list[float] = []
        self._drawn_s, self._lost_s, self._wait_s = 0.0, 0.0, FIRST_WAIT_S

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Draw a step of the batch within, in the calling thread, with `size` threads."""
        take_threads(self.size)
        work, began = batch.rows, time.perf_counter()
        yield
        self.note(work, (time.perf_counter() - began) / batch.expected)

    def note(self, work: int, seconds: float) -> None:
        """Note a step that was drawn with `size` threads: the seconds that it took for a token of each image.

        work: steps of equal work can be compared.
        """
        if self.size == self.usual:
            self._before = work, seconds
            self._drawn_s += seconds
            if self._others and self._drawn_s >= self._wait_s:
                self.size = self._others[0]
            return
        self._lost_s += seconds - self._before[1]
        if self._before[0] == work:
            self._ratios.append(seconds / max(self._before[1], 1e-9))
        if len(self._ratios) == PAIRS or max(self._ratios, default=0.0) > HOPELESS:
            self._end_trial()
        self.size = self.usual

    def _end_trial(self) -> None:
        won = median(self._ratios) < GAIN
        first, *others = self._others
        self._others = [*others, self.usual if won else first]
        self.usual = first if won else self.usual
        longer = max(min(2 * self._wait_s, LAST_WAIT_S), self._lost_s / MOST_LOST)
        self._wait_s = FIRST_WAIT_S if won else longer
        self._ratios, self._drawn_s, self._lost_s = [], 0.0, 0.0


def take_threads(count: int) -> None:
    """Let the calling thread compute with `count` threads."""
    if torch.get_num_threads() != count:
        _set(count)
