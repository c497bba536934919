"""One thread that owns the model: concurrent requests are drawn together, other uses take their turn.

Knows the model interface and nothing of HTTP. Work is done in the order it was submitted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from codebook.errors import Unavailable
from engine.model import ImageModel, ImageRequest, Verdict
from engine.pixels import to_bytes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawn:
    """One finished image: tokens [N] int64, image [H, W, 3] uint8, both on the CPU, and the model's own verdict."""

    tokens: Tensor
    image: Tensor
    verdict: Verdict


@dataclass(eq=False)
class _Draw:
    """A submitted list of images. `taken` counts those handed to a batch; `drawn` fills up in order."""

    requests: Sequence[ImageRequest]
    on_step: Callable[[int, int], None] | None
    future: Future[list[Drawn]]
    taken: int = 0
    drawn: list[Drawn] = field(default_factory=list)


@dataclass(eq=False)
class _Use:
    """Any other use of the model."""

    function: Callable[[ImageModel], Any]
    future: Future[Any]


class Batcher:
    """Serves a model to many threads. Futures may be cancelled until their work begins."""

    def __init__(self, model: ImageModel, max_batch: int = 8, max_wait_s: float = 0.01, queue_limit: int = 64) -> None:
        """Start the thread. A batch waits up to `max_wait_s` seconds to fill; `queue_limit` images may wait."""
        self._model, self._max_batch, self._max_wait, self._limit = model, max_batch, max_wait_s, queue_limit
        self._queue: deque[_Draw | _Use] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._batch_seconds = 1.0  # of the last batch
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit_draw(
        self, requests: Sequence[ImageRequest], on_step: Callable[[int, int], None] | None = None
    ) -> Future[list[Drawn]]:
        """Draw, decode and judge images; the future gives them in order, or BadInput for a prompt not readable.

        `on_step(done, total)` counts this call's tokens, in the batcher's thread; it must be quick and not raise.
        Raises Unavailable when the queue is full or closed.
        """
        future: Future[list[Drawn]] = Future()
        self._put(_Draw(list(requests), on_step, future), len(requests))
        return future

    def submit(self, function: Callable[[ImageModel], Result]) -> Future[Result]:
        """Call `function` with the model when its turn comes. Raises Unavailable when the queue is full or closed."""
        future: Future[Result] = Future()
        self._put(_Use(function, future), 1)
        return future

    def waiting(self) -> int:
        """How many images and other uses wait for their turn."""
        with self._changed:
            return self._waiting()

    def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the thread. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, work: _Draw | _Use, size: int) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the server is shutting down", retry_after=5.0)
            waiting = self._waiting()
            if waiting + size > self._limit:
                batches = -(-waiting // self._max_batch)
                raise Unavailable(f"the queue is full: {waiting} images wait", max(1.0, batches * self._batch_seconds))
            self._queue.append(work)
            self._changed.notify_all()

    def _waiting(self) -> int:
        return sum(len(work.requests) - work.taken if isinstance(work, _Draw) else 1 for work in self._queue)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                first = self._queue[0]
                if isinstance(first, _Use):
                    self._queue.popleft()
                else:
                    self._changed.wait_for(self._full, self._max_wait)
                    batch = self._take()
            if isinstance(first, _Use):
                _settle(first.future, lambda use=first: use.function(self._model))  # type: ignore[misc]
            else:
                self._draw(batch)

    def _full(self) -> bool:
        """Whether waiting longer cannot make the next batch bigger."""
        return self._closed or self._waiting() >= self._max_batch or any(isinstance(w, _Use) for w in self._queue)

    def _take(self) -> list[tuple[_Draw, ImageRequest]]:
        """Take up to max_batch images off the queue, in order; called with the lock held."""
        batch: list[tuple[_Draw, ImageRequest]] = []
        while self._queue and len(batch) < self._max_batch:
            work = self._queue[0]
            if isinstance(work, _Use):
                break
            if work.taken == 0 and not self._admit(work):
                self._queue.popleft()
                continue
            chosen = work.requests[work.taken : work.taken + self._max_batch - len(batch)]
            batch += [(work, request) for request in chosen]
            work.taken += len(chosen)
            if work.taken == len(work.requests):
                self._queue.popleft()
        return batch

    def _admit(self, work: _Draw) -> bool:
        """Begin a draw unless it was cancelled, is empty, or holds a bad prompt, which must not harm its mates."""
        if not work.future.set_running_or_notify_cancel():
            return False
        try:
            for request in work.requests:
                self._model.check_prompt(request.prompt)
        except Exception as error:  # whatever it is, it belongs to the caller
            work.future.set_exception(error)
            return False
        if not work.requests:
            work.future.set_result([])
        return bool(work.requests)

    def _draw(self, batch: list[tuple[_Draw, ImageRequest]]) -> None:
        """Draw a batch; its images go to their calls, and each call that is complete gets its answer."""
        if not batch:
            return
        began = time.monotonic()
        calls = list(dict.fromkeys(work for work, _ in batch))
        try:
            finished = self._finish(batch, calls)
        except BaseException as error:
            for work in calls:
                self._fail(work, error)
            return
        self._batch_seconds = time.monotonic() - began
        for (work, _), drawn in zip(batch, finished, strict=True):
            work.drawn.append(drawn)
        for work in calls:
            if len(work.drawn) == len(work.requests):
                work.future.set_result(work.drawn)

    def _finish(self, batch: list[tuple[_Draw, ImageRequest]], calls: list[_Draw]) -> list[Drawn]:
        sizes = {work: sum(owner is work for owner, _ in batch) for work in calls}
        steps = self._model.facts.tokens

        def on_step(step: int) -> None:
            for work in calls:
                if work.on_step is not None:
                    done = len(work.drawn) * steps + sizes[work] * (step + 1)
                    work.on_step(done, len(work.requests) * steps)

        tokens = self._model.draw([request for _, request in batch], on_step)
        tables = [request.codebook.pixel for _, request in batch]
        same = all(table is tables[0] for table in tables)
        with torch.no_grad():
            images = self._model.decode(tokens, tables[0] if same else torch.stack(tables))
        verdicts = self._model.judge(images)
        return [Drawn(*parts) for parts in zip(tokens.cpu(), to_bytes(images), verdicts, strict=True)]

    def _fail(self, work: _Draw, error: BaseException) -> None:
        with self._changed:
            if work in self._queue:  # the rest of it is not drawn any more
                self._queue.remove(work)
        work.future.set_exception(error)


def _settle(future: Future[Result], compute: Callable[[], Result]) -> None:
    """Run `compute` into the future, unless that was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = compute()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
