"""Accepted calls that are not settled: their futures and their images."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from engine.image_result import ImageResult
from engine.runner.sequence import ImageSequence


class Calls:
    """The unsettled calls. `changed` is notified as one is settled, since it was the last that a thread waits for."""

    def __init__(self, changed: threading.Condition) -> None:
        """changed: also the lock of the calls."""
        self._changed = changed
        self._calls: dict[Future[list[ImageResult]], Sequence[ImageSequence]] = {}

    def add(self, future: Future[list[ImageResult]], sequences: Sequence[ImageSequence]) -> None:
        """Take a call in, until its future is done."""
        self._calls[future] = sequences
        future.add_done_callback(self._forget)

    def __len__(self) -> int:
        return len(self._calls)

    def of(self, future: Future[list[ImageResult]]) -> Sequence[ImageSequence]:
        """The images of a call; none of one that is settled."""
        return self._calls.get(future, ())

    def judged(self) -> bool:
        """Whether an image may begin again by the verdict on it. Called with the lock."""
        sequences = (sequence for call in self._calls.values() for sequence in call)
        return any(sequence.awaits_verdict and not sequence.future.done() for sequence in sequences)

    def fail(self, error: BaseException) -> None:
        """Settle all calls with an error."""
        for future in list(self._calls):
            with suppress(InvalidStateError):
                future.set_exception(error)

    def _forget(self, future: Future[list[ImageResult]]) -> None:
        with self._changed:
            self._calls.pop(future, None)
            self._changed.notify_all()
