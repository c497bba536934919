"""Continuous batching: one thread draws the next token of every image at once; images join and leave between steps.

Knows calls and slots; what becomes of finished tokens is the finisher's. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from core.errors import Busy, Stopping, Unavailable
from engine.model import ImageRequest
from engine.runner.batch import Served
from engine.runner.sequence import ImageSequence, rows_of
from engine.scheduler.eta import starts
from engine.scheduler.fair_queue import Drawn, FairQueue, GenerateCall, Part, Place, Refused, Wanted
from engine.scheduler.postprocess import PostProcessor, explained, on_device
from engine.scheduler.thread_budget import ThreadBudget

log = logging.getLogger(__name__)

Result = TypeVar("Result")

QUEUE = 64  # images that may wait
PARTS = 4  # an image's caller hears of it when one of so many parts is drawn
READ_TOGETHER = 8  # prompts that are read at once
LONGEST_S = 60.0  # no refused caller is told to stay away longer
SMOOTH = 0.02  # how much the last step counts in the mean time of a step: prompts are read between some, not all


class Scheduler:
    """Serves a model to many threads. Futures may be cancelled at any time: the image is given up at the next step."""

    def __init__(self, model: Served, rows: int, cores: int, queue_limit: int | None = None) -> None:
        """Warm up and start the threads, which share `cores` cores. At most `rows` rows are drawn at once.

        `queue_limit` images may wait, shared by those who wait: if None, QUEUE, or as many as there are rows, if more.
        """
        self._model, self._rows = model, rows
        self._limit = max(QUEUE, rows) if queue_limit is None else queue_limit
        self._cores = ThreadBudget(cores)
        with on_device(model.device):
            self._slots = model.slots(rows)
        with ThreadPoolExecutor(1) as short_lived:  # the calling thread's helpers would stay as long as it does
            short_lived.submit(self._warm).result()
        self._finisher = PostProcessor(model, self._cores)
        self._drawing: dict[ImageSequence, Wanted] = {}
        self._line = FairQueue()
        self._refused = Refused()
        self._unsettled: set[GenerateCall] = set()
        self._changed = threading.Condition()  # guards the line, who was refused, and `_closed`
        self._closed = False
        self._step_s = 0.0  # mean seconds from one step to the next, whatever lies between
        self._failure: BaseException | None = None
        self._part = max(1, model.facts.tokens // PARTS)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit_draw(
        self,
        requests: Sequence[ImageRequest],
        caller: str = "",
        on_part: Callable[[Part], None] | None = None,
    ) -> Future[list[Drawn]]:
        """Draw, decode and judge images; the future gives them in order, or Stopping where `give_up` comes before.

        Callers take turns, an image each. `on_part` is called with the first quarters of each image's tokens, in the
        batcher's thread; it must be quick. Raises BadInput for a prompt that the model cannot read, Busy when the
        caller's share of the queue is full, with the time until there is room for it and for those refused before, and
        Unavailable when closed or broken.
        """
        for prompt in {request.prompt for request in requests}:
            self._model.check_prompt(prompt)
        call = GenerateCall(list(requests), caller, on_part)
        with self._changed:
            self._refuse_closed()
            over = self._line.over(caller, len(call.requests), self._limit)
            if min(over) > 0:
                raise self._busy(call, *over)
            if call.requests:
                self._refused.let_in(caller)
                self._line.join(call)
                self._unsettled.add(call)
                call.future.add_done_callback(lambda _: self._unsettled.discard(call))
                self._changed.notify_all()
            else:
                call.future.set_result([])
        return call.future

    def submit(self, function: Callable[[Served], Result]) -> Future[Result]:
        """Call `function` with the model when its turn comes. Raises Unavailable when too many wait, or closed."""
        with self._changed:
            self._refuse_closed()
            return self._finisher.use(function)

    def place(self, future: Future[list[Drawn]]) -> Place:
        """The place in the queue of the call with this future."""
        with self._changed:
            line = self._begins()
        own = [(i, begin) for i, (begin, wanted) in enumerate(line) if wanted.call.future is future] or [(0, 0)]
        return Place(own[0][0], (own[-1][1] + self._model.facts.tokens) * self._step_s)

    def waiting(self) -> int:
        """How many images wait for their first token."""
        with self._changed:
            return len(self._line)

    @property
    def broken(self) -> bool:
        """Whether a thread has died: nothing will be drawn any more, and only a new process helps."""
        return self._failure is not None or not (self._closed or self._finisher.alive)

    def give_up(self) -> None:
        """Accept nothing more, and fail with Stopping what was accepted and is not finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for call in list(self._unsettled):
            call.fail(Stopping())

    def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._finisher.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Stopping
        if self.broken:
            raise Unavailable("the engine has failed; the server starts again", retry_after=10.0)

    def _busy(self, call: GenerateCall, own_over: int, over: int) -> Busy:
        """The refusal of a call, until there is room for it after those refused before. Called with the lock."""
        now, rows = time.monotonic(), sum(map(rows_of, call.requests))
        self._refused.forget(now)
        turns = self._refused.before(call.caller, rows) / self._rows * self._model.facts.tokens * self._step_s
        wait = min(self._until_room(call.caller, own_over, over) + turns, LONGEST_S)
        busy = Busy(f"the queue is full: {len(self._line)} images wait", wait)
        if busy.retry_after < LONGEST_S:
            self._refused.add(call.caller, now + busy.retry_after, rows)
        return busy

    def _until_room(self, caller: str, own_over: int, over: int) -> float:
        """Seconds until `own_over` of the caller's waiting images have begun, or `over` of all, whichever comes first.

        If nobody joins or leaves before, and no image begins again. Called with the lock.
        """
        line = self._begins()
        begins, own = [begin for begin, _ in line], [begin for begin, wanted in line if wanted.call.caller == caller]
        waits = [*own[own_over - 1 : own_over], *begins[over - 1 : over]] or begins[-1:]
        return min(waits, default=0) * self._step_s

    def _begins(self) -> list[tuple[int, Wanted]]:
        """The waiting images in their order, and in how many steps each begins. Called with the lock."""
        steps = self._model.facts.tokens
        drawing = [(len(sequence.rows), steps - sequence.step) for sequence in self._slots.drawing]
        order = self._line.order()
        return list(zip(starts(drawing, [rows_of(w.request) for w in order], self._rows, steps), order, strict=True))

    def _warm(self) -> None:
        with on_device(self._model.device):
            for _ in self._cores.shares():
                self._slots.warm()

    def _run(self) -> None:
        try:
            self._cores.step_back()
            with on_device(self._model.device):
                while self._work_comes():
                    self._draw_all()
        except BaseException as error:  # a bug, or a card that has failed for good
            log.exception("the engine has failed")
            self._break(error)

    def _draw_all(self) -> None:
        """Draw until nobody wants an image."""
        began = time.monotonic()
        while self._drawing or self.waiting():
            self._cores.take_to_draw()
            self._let_go()
            self._let_in()
            if self._drawing:
                self._step()
                ended = time.monotonic()
                self._step_s += (ended - began - self._step_s) * (SMOOTH if self._step_s else 1.0)
                began = ended
            else:
                self._finisher.wait_below(self._rows)

    def _break(self, error: BaseException) -> None:
        """Fail every call there is, and let nobody wait for ever."""
        with self._changed:
            self._failure = error
            while self._line.first() is not None:
                self._line.take().call.fail(error)
        for wanted in self._drawing.values():
            wanted.call.fail(error)

    def _work_comes(self) -> bool:
        """Wait for work; False once there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._line) or self._closed)
            return len(self._line) > 0

    def _let_go(self) -> None:
        """Give up the images of callers that have gone."""
        with self._changed:
            self._line.leave()
        for sequence, wanted in list(self._drawing.items()):
            if wanted.call.future.done():
                self._slots.drop(sequence)
                del self._drawing[sequence]

    def _let_in(self) -> None:
        """Begin the images whose turn it is and for which there is room, here and where they are finished."""
        taken: list[Wanted] = []
        with self._changed:
            free = self._slots.free if self._finisher.backlog() < self._rows else 0
            while (wanted := self._line.first()) and rows_of(wanted.request) <= free:
                free -= rows_of(wanted.request)
                taken.append(self._line.take())
        awaited = [wanted for wanted in taken if not wanted.call.future.done()]
        for first in range(0, len(awaited), READ_TOGETHER):
            self._admit(awaited[first : first + READ_TOGETHER])

    def _admit(self, some: list[Wanted]) -> None:
        """Begin images together; where that fails, one by one, so that an error is its own call's alone."""
        try:
            self._drawing |= zip(self._slots.admit([wanted.request for wanted in some]), some, strict=True)
        except Exception as error:
            if len(some) == 1:
                some[0].fail(explained(error))
            else:
                for wanted in some:
                    self._admit([wanted])

    def _tell(self, wanted: Wanted, sequence: ImageSequence) -> None:
        if wanted.call.on_part is not None:
            try:
                wanted.call.on_part(Part(wanted.index, wanted.request, self._slots.drawn(sequence)))
            except Exception as error:  # the caller's own
                wanted.call.fail(error)

    def _step(self) -> None:
        """Draw a token of every image; an error fails all of them, and the next ones begin anew."""
        try:
            finished = self._slots.step()
        except BaseException as error:
            for wanted in self._drawing.values():
                wanted.call.fail(explained(error))
            self._drawing.clear()
            self._slots.clear()
            return
        for sequence, tokens in finished:
            self._finisher.finish(self._drawing.pop(sequence), tokens, sequence.expert)
        for sequence, wanted in self._drawing.items():
            if sequence.step and sequence.step % self._part == 0:
                self._tell(wanted, sequence)
