"""One token a row, read with one launch: on a GPU the host would otherwise be slower than the card.

A CUDA graph is recorded for each bucket of rows and of places; between them rows are padded with free ones. On a CPU,
where launches cost nothing, tokens are read as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.language import Context, LanguageStack

log = logging.getLogger(__name__)

PLACES = 256  # attention reads this many places at a time in a graph, so that there are few of them
WARM_UPS = 3  # runs before a graph is recorded, as torch asks

Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]


class StepReader:
    """Reads the next token of the first rows of one context."""

    def __init__(self, language: LanguageStack, context: Context, record: Record | None) -> None:
        """`record` turns a computation over fixed tensors into its replay; None reads without."""
        self._language, self._context, self._record = language, context, record
        rows, self._places = context.keys.shape[1], context.keys.shape[3]
        self._input = context.keys.new_zeros(rows, 1, language.width)
        self._replays: dict[tuple[int, int], Replay] = {}

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

    def warm(self) -> None:
        """Record every graph that may be needed; the context must be unused."""
        if self._record is None:
            return
        for width in dict.fromkeys(self._width(rows) for rows in range(1, self._input.shape[0] + 1)):
            for places in range(0, self._places, PLACES):
                self._context.longest = places
                self._replay(width)
        self._context.longest = 0

    def _replay(self, rows: int) -> Replay:
        bound = min(self._places, -(-(self._context.longest + 1) // PLACES) * PLACES)
        width = self._width(rows)
        if (width, bound) not in self._replays:
            assert self._record is not None

            def read() -> Tensor:
                return self._language.layers(self._input[:width], self._context, bound)

            self._replays[width, bound] = self._record(read)
        return self._replays[width, bound]

    def _width(self, rows: int) -> int:
        """The bucket of `rows`: the next power of two, as far as there are rows."""
        return int(min(self._input.shape[0], 1 << (rows - 1).bit_length()))


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
