"""One token a row, read with one launch: on a GPU the host would otherwise be slower than the card.

A CUDA graph is recorded for each bucket of rows; between them rows are padded with free ones. On a CPU, where launches
cost nothing, tokens are read as they are. What else is computed over and over in one shape can be recorded too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.language import Context, LanguageStack

log = logging.getLogger(__name__)

WARM_UPS = 3  # runs before a graph is recorded, as torch asks

Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]


class StepReader:
    """Reads the next token of the first rows of one context."""

    def __init__(self, language: LanguageStack, context: Context, record: Record | None) -> None:
        """`record` turns a computation over fixed tensors into its replay; None reads without."""
        self._language, self._context, self._record = language, context, record
        self._input = context.keys.new_zeros(context.keys.shape[1], 1, language.width)
        self._replays: dict[int, Replay] = {}

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Read embeddings [R, H] into the first R rows; returns their last hidden states [R, H]."""
        rows, context = embeddings.shape[0], self._context
        if self._record is None:
            return self._language.read(embeddings[:, None], context)[:, 0]
        self._input[:rows, 0] = embeddings
        hidden = self._replay(rows)()[:rows, 0]
        context.lengths[:rows] += 1
        context.longest += 1
        return hidden

    def warm(self) -> list[int]:
        """Record every graph that may be needed; returns the numbers of rows that will be read."""
        if self._record is None:
            return list(range(1, self._input.shape[0] + 1))
        widths = list(dict.fromkeys(self._width(rows) for rows in range(1, self._input.shape[0] + 1)))
        for width in widths:
            self._replay(width)
        return widths

    def _replay(self, rows: int) -> Replay:
        width = self._width(rows)
        if width not in self._replays:
            assert self._record is not None

            def read() -> Tensor:
                return self._language.layers(self._input[:width], self._context, self._context.keys.shape[3])

            self._replays[width] = self._record(read)
        return self._replays[width]

    def _width(self, rows: int) -> int:
        """The bucket of `rows`: the next power of two, as far as there are rows."""
        return int(min(self._input.shape[0], 1 << (rows - 1).bit_length()))


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
