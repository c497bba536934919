"""CUDA graphs of computations that are repeated in one shape: one launch in place of hundreds, which the host limits.

A graph is recorded for each shape. On a CPU, where launches cost nothing, nothing is recorded.
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
    """Recordings of one computation over the first `width` rows of tensors that stay at their addresses.

    The computation must be idempotent: recording runs it several times.
    """

    def __init__(self, record: Record | None) -> None:
        """`record` turns a computation into its replay; without it every call computes."""
        self._record = record
        self._replays: dict[int, Replay] = {}

    def __call__(self, compute: Callable[[int], Tensor], width: int) -> Tensor:
        """Compute, without a value from the host. `compute` is not kept: it refers to its owner, who owns this."""
        if self._record is None:
            return compute(width)
        if width not in self._replays:
            self._replays[width] = self._record(partial(compute, width))
        return self._replays[width]()


def bucket(rows: int, limit: int) -> int:
    """Width of the recording for `rows` rows: the next power of two, at most `limit`."""
    return min(limit, 1 << (rows - 1).bit_length())


class Recorded:
    """A computation over tensors of the same shapes every time, recorded at its first call if there is a recorder."""

    def __init__(self, compute: Callable[..., Tensor], record: Record | None) -> None:
        """`compute` takes no value from the host; its result is a function of its tensors."""
        self._compute, self._record = compute, record
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Replay | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute; one caller at a time, since a recording has one buffer for each input."""
        if self._record is None:
            return self._compute(*inputs)
        with torch.inference_mode():
            if self._replay is None:
                self._inputs = tuple(tensor.clone() for tensor in inputs)
                self._replay = self._record(lambda: self._compute(*self._inputs))
            for buffer, tensor in zip(self._inputs, inputs, strict=True):
                buffer.copy_(tensor)
            output = self._replay()
        return output.clone()


def recorder(device: torch.device) -> Record | None:
    """The recorder of computations on `device`; None on a CPU."""
    return _CudaRecorder().record if device.type == "cuda" else None


class _CudaRecorder:
    """Records CUDA graphs on the current device. They share memory, since no two are replayed simultaneously."""

    def __init__(self) -> None:
        self._pool: Any = None  # made with the first recording: nothing touches the device before

    def record(self, compute: Replay) -> Replay:
        """Record a computation; where that fails, return it as it is, with a warning."""
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
            # Thread-local: the thread that postprocesses may use the device meanwhile.
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                output = compute()
        except RuntimeError as error:
            log.warning("no CUDA graph: %s", error)
            return compute

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
