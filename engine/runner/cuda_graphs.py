"""What is computed over and over in one shape, with one launch: a GPU would otherwise wait for its host.

A CUDA graph is recorded for each shape. On a CPU, where launches cost nothing, all is computed as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UPS = 3  # runs before a graph is recorded, as torch asks

Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]


class ByWidth:
    """Recordings of one computation over the first `width` rows of tensors that stay where they are.

    To compute twice must be as good as once: that is how it is recorded.
    """

    def __init__(self, record: Record | None) -> None:
        """`record` turns a computation into its replay; None does not."""
        self._record = record
        self._replays: dict[int, Replay] = {}

    def __call__(self, compute: Callable[[int], Tensor], width: int) -> Tensor:
        """Compute; `compute` asks nothing of the host. It is not kept: its owner, who owns this, is to be freed."""
        if self._record is None:
            return compute(width)
        if width not in self._replays:
            self._replays[width] = self._record(partial(compute, width))
        return self._replays[width]()


def bucket(rows: int, most: int) -> int:
    """How many rows a recording for `rows` of `most` rows takes: the next power of two, as far as there are rows."""
    return min(most, 1 << (rows - 1).bit_length())


class Recorded:
    """A computation over tensors of the same shapes every time, recorded at its first call if there is a recorder."""

    def __init__(self, compute: Callable[..., Tensor], record: Record | None) -> None:
        """`compute` asks nothing of the host; what it gives is a function of its tensors."""
        self._compute, self._record = compute, record
        self._given: tuple[Tensor, ...] = ()
        self._replay: Replay | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        """Compute; one caller at a time, since a recording has one place for what it is given."""
        if self._record is None:
            return self._compute(*given)
        with torch.inference_mode():
            if self._replay is None:
                self._given = tuple(one.clone() for one in given)
                self._replay = self._record(lambda: self._compute(*self._given))
            for place, one in zip(self._given, given, strict=True):
                place.copy_(one)
            found = self._replay()
        return found.clone()


def recorder(device: torch.device) -> Record | None:
    """How computations on `device` are recorded; None where they are not."""
    return _CudaRecorder().record if device.type == "cuda" else None


class _CudaRecorder:
    """Records CUDA graphs that share their memory, since no two are replayed at once; on the current device."""

    def __init__(self) -> None:
        self._pool: Any = None  # with the first recording: nothing touches the card before

    def record(self, compute: Replay) -> Replay:
        """Record a computation; where that fails, give it back as it is, with a warning."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: the thread that decodes may use the card meanwhile.
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                output = compute()
        except RuntimeError as error:
            log.warning("no CUDA graph: %s", error)
            return compute

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
