"""Continuous batching: one thread samples the next token of every image in the batch; images join and leave between.

Knows the queue and the running batch; decoding and judging are the postprocessor's. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from core.errors import Busy, Stopping, Unavailable
from engine.image_result import ImageResult, PartialImage
from engine.model import ImageRequest
from engine.runner.sequence import ImageSequence, kv_rows_of, results_of
from engine.runner.served import Served
from engine.runner.step.lookahead import LOOKAHEAD
from engine.scheduler.calls import Calls
from engine.scheduler.fair_queue import FairQueue, Place, Refused
from engine.scheduler.load import Load
from engine.scheduler.pace import Pace
from engine.scheduler.postprocess import PostProcessor, explained, on_device
from engine.scheduler.revisions import Revisions
from engine.scheduler.start_times import starts
from engine.scheduler.thread_budget import ThreadBudget

log = logging.getLogger(__name__)

Result = TypeVar("Result")

QUEUE = 64  # images that may wait
PARTS = 4  # an image's caller is called whenever one of so many parts is drawn
PREFILL_BATCH = 8  # prompts that are read together
MAX_RETRY_S = 60.0  # the longest Retry-After


class Scheduler:
    """Serves a model to many threads. Futures may be cancelled at any time: the image is dropped at the next step."""

    def __init__(
        self,
        model: Served,
        kv_rows: int,
        cores: int,
        queue_limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        lookahead: int = LOOKAHEAD,
        judge_share: float = 1.0,
    ) -> None:
        """Warm up and start the threads, which share `cores` cores. At most `kv_rows` KV rows are in use.

        `queue_limit` images may wait, shared by all callers: if None, QUEUE, or as many as there are rows, if more.
        clock: seconds, by which steps are timed. lookahead: see RunningBatch. judge_share: see PostProcessor.
        """
        self._model, self._kv_rows, self._clock = model, kv_rows, clock
        self._limit = max(QUEUE, kv_rows) if queue_limit is None else queue_limit
        self._budget = ThreadBudget(cores, tried=model.device.type == "cpu")
        with on_device(model.device):
            self._batch = model.running_batch(kv_rows, lookahead)
        with ThreadPoolExecutor(1) as short_lived:  # OpenMP's helpers of the calling thread would stay with it
            short_lived.submit(self._warm).result()
        self._postprocessor = PostProcessor(model, self._budget, self._rejoin, judge_share)
        self._queue, self._refused = FairQueue(), Refused()
        self._changed = threading.Condition()  # guards the queue, the calls, the refused ones and `_closed`
        self._calls = Calls(self._changed)
        self._closed = False
        self._revisions = Revisions(self._postprocessor, self._rejoin)
        self._pace = Pace(clock)
        self._failure: BaseException | None = None
        self._part = max(1, self._batch.steps // PARTS)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit_draw(
        self,
        requests: Sequence[ImageRequest],
        caller: str = "",
        on_part: Callable[[PartialImage], None] | None = None,
        most: int | None = None,
    ) -> Future[list[ImageResult]]:
        """Draw, decode and judge images; the future gives them in order, or Stopping after `give_up`.

        Prompts are tokenised in the caller's thread. `on_part` gets the first quarters of each image's tokens, in the
        scheduler's thread; it must be quick. Raises BadInput for a prompt that the model cannot read; Unavailable when
        closed or broken; Busy, with `retry_after`, when queue and caller's share are full or `most` of its images wait.
        """
        prompts = {prompt: self._model.tokenize(prompt) for prompt in {request.prompt for request in requests}}
        stops = () if on_part is None else range(self._part, self._batch.steps, self._part)
        sequences = [ImageSequence(r, prompts[r.prompt], i, on_part, stops=stops) for i, r in enumerate(requests)]
        with self._changed:
            self._refuse_closed()
            over = self._queue.over(caller, len(sequences), self._limit)
            if most is not None and (beyond := self._queue.waiting(caller) + len(sequences) - most) > 0:
                raise Busy(f"more than {most} images of this key would wait", self._until_room(caller, beyond, 0))
            if min(over) > 0:
                raise self._busy(caller, sequences, *over)
            future = results_of(sequences)
            if sequences:
                self._refused.admit(caller)
                self._queue.join(caller, sequences)
                self._calls.add(future, sequences)
                self._changed.notify_all()
            else:
                future.set_result([])
        return future

    def submit(self, function: Callable[[Served], Result]) -> Future[Result]:
        """Call `function` with the model when its turn comes. Raises Unavailable when too many wait, or closed."""
        with self._changed:
            self._refuse_closed()
            return self._postprocessor.use(function)

    def place(self, future: Future[list[ImageResult]]) -> Place:
        """The place in the queue of the call with this future."""
        with self._changed:
            begins, sequences = self._begins(), self._calls.of(future)
        own = [(i, begin) for i, (begin, _, sequence) in enumerate(begins) if sequence in sequences] or [(0, 0)]
        return Place(own[0][0], self._pace.seconds(own[-1][1] + self._batch.steps))

    def waiting(self) -> int:
        """Number of images that wait for their first token."""
        with self._changed:
            return len(self._queue)

    def load(self) -> Load:
        """What the scheduler is busy with, as of now."""
        drawing, finishing = len(self._batch.sequences), self._postprocessor.backlog()
        rows, waiting = self._batch.rows, self.waiting() + len(self._revisions.running)
        pace, threads = self._pace, self._budget.draw_threads
        return Load(waiting, drawing, finishing, rows, self._kv_rows, pace.step_s, pace.accepted, threads)

    @property
    def broken(self) -> bool:
        """Whether a thread has died: nothing will be drawn any more, and only a new process helps."""
        return self._failure is not None or not (self._closed or self._postprocessor.alive)

    def give_up(self) -> None:
        """Accept nothing more, and fail with Stopping what was accepted and is not finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._calls.fail(Stopping())

    def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._postprocessor.close()

    def _refuse_closed(self) -> None:
        if self._closed or self.broken:
            raise Stopping if self._closed else Unavailable("the engine has failed; the server starts again", 10.0)

    def _busy(self, caller: str, sequences: Sequence[ImageSequence], own_over: int, over: int) -> Busy:
        """The refusal of a call, until there is room for it after those refused before. Called with the lock."""
        now, rows = self._clock(), sum(kv_rows_of(sequence.request) for sequence in sequences)
        self._refused.forget(now)
        turns = self._pace.seconds(self._refused.before(caller, rows) / self._kv_rows * self._batch.steps)
        wait = min(self._until_room(caller, own_over, over) + turns, MAX_RETRY_S)
        busy = Busy(f"the queue is full: {len(self._queue)} images wait", wait)
        if busy.retry_after < MAX_RETRY_S:
            self._refused.add(caller, now + busy.retry_after, rows)
        return busy

    def _until_room(self, caller: str, own_over: int, over: int) -> float:
        """Seconds until `own_over` of the caller's images, or `over` of all, have begun if none joins or leaves before.

        Called with the lock.
        """
        line = self._begins()
        begins, own = [begin for begin, _, _ in line], [begin for begin, name, _ in line if name == caller]
        waits = [*own[own_over - 1 : own_over], *begins[over - 1 : over]] or begins[-1:]
        return self._pace.seconds(min(waits, default=0))

    def _begins(self) -> list[tuple[int, str, ImageSequence]]:
        """The waiting images in their order: steps until each begins, and its caller. Called with the lock."""
        steps = self._batch.steps
        running = [(len(sequence.kv_rows), steps - sequence.step) for sequence in self._batch.sequences]
        order = self._queue.order()
        begins = starts(running, [kv_rows_of(each.request) for _, each in order], self._kv_rows, steps)
        return [(begin, *entry) for begin, entry in zip(begins, order, strict=True)]

    def _warm(self) -> None:
        with on_device(self._model.device):
            for _ in self._budget.shares():
                self._batch.warm()

    def _run(self) -> None:
        try:
            self._budget.lower_priority()
            with on_device(self._model.device):
                while self._wait_for_work():
                    self._draw_all()
        except BaseException as error:  # a bug, or a device that has failed for good
            log.exception("the engine has failed")
            self._break(error)

    def _wait_for_work(self) -> bool:
        """Wait for work; False once there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or (self._closed and not self._may_return()))
            return len(self._queue) > 0

    def _may_return(self) -> bool:
        """Whether an image may come back to the queue. Called with the lock."""
        return bool(self._revisions.running) or self._calls.judged()

    def _draw_all(self) -> None:
        """Draw until no image is left."""
        self._pace.begin()
        while self._batch.sequences or self.waiting():
            self._budget.take_to_draw()
            self._drop_settled()
            self._admit_next()
            if self._batch.sequences:
                self._step()
                self._pace.note(self._batch.accepted)
            else:
                self._postprocessor.wait_below(self._kv_rows)
                with self._changed:
                    self._changed.wait_for(lambda: len(self._revisions.running) < self._kv_rows)

    def _break(self, error: BaseException) -> None:
        """Fail every image there is, so that no caller waits for ever."""
        with self._changed:
            self._failure = error
        self._calls.fail(error)

    def _drop_settled(self) -> None:
        """Drop the images for which nobody waits any more."""
        with self._changed:
            self._queue.drop_settled()
        for sequence in self._batch.sequences:
            if sequence.future.done():
                self._batch.drop(sequence)

    def _admit_next(self) -> None:
        """Begin the images whose turn it is and for which there is room, in the batch and in postprocessing."""
        taken: list[ImageSequence] = []
        with self._changed:
            busy = max(self._postprocessor.backlog(), len(self._revisions.running)) >= self._kv_rows
            free = 0 if busy else self._batch.free
            while (sequence := self._queue.first()) and kv_rows_of(sequence.request) <= free:
                free -= kv_rows_of(sequence.request)
                taken.append(self._queue.take())
        awaited = [sequence for sequence in taken if not sequence.future.done()]
        for first in range(0, len(awaited), PREFILL_BATCH):
            self._admit(awaited[first : first + PREFILL_BATCH])

    def _admit(self, sequences: list[ImageSequence]) -> None:
        """Begin images together; where that fails, one by one, so that an error is its own image's alone."""
        try:
            aside = self._batch.admit(sequences)
        except Exception as error:
            if len(sequences) == 1:
                sequences[0].fail(explained(error))
            else:
                for sequence in sequences:
                    self._admit([sequence])
            return
        self._revisions.take(aside)

    def _rejoin(self, sequences: list[ImageSequence]) -> None:
        """Let images come first, now that their prompts are revised. In the postprocessor's thread."""
        with self._changed:
            self._revisions.running.difference_update(sequences)
            self._queue.rejoin(sequences)
            self._changed.notify_all()

    def _step(self) -> None:
        """Sample a token of every image; an error fails all of them, and the next ones begin anew."""
        running = self._batch.sequences
        try:
            with self._budget.drawing(self._batch):
                complete = self._batch.step()
        except BaseException as error:
            for sequence in running:
                sequence.fail(explained(error))
            self._batch.clear()
            return
        for sequence in complete:
            if sequence.mode == "refuse":
                sequence.refuse()
            else:
                self._postprocessor.finish(sequence)
        for sequence in self._batch.sequences:
            if sequence.step in sequence.stops:
                self._report_part(sequence)

    def _report_part(self, sequence: ImageSequence) -> None:
        if sequence.on_part is not None and not sequence.awaits_verdict:
            try:
                sequence.on_part(PartialImage(sequence.index, sequence.request, self._batch.tokens_so_far(sequence)))
            except Exception as error:  # the caller's own
                sequence.fail(error)
