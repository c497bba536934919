"""Postprocessing in a thread of its own: decode and judge finished tokens, while the scheduler goes on sampling.

Other uses of the model take turns with it. On a GPU its work runs on a side stream.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.errors import BadNumber, Unavailable
from engine.image_result import ImageResult, image_id, is_in_share
from engine.model import Verdict
from engine.png import to_bytes
from engine.runner.batch import check_drawn
from engine.runner.revision import begins_again
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served
from engine.scheduler.thread_budget import ThreadBudget

Result = TypeVar("Result")

DECODE_BATCH = 8  # images that finish while others are decoded wait for a batch of at most this many
USES = 64  # other uses of the model that may wait


@dataclass(frozen=True, eq=False)
class _Use:
    """Any other use of the model."""

    function: Callable[[Served], Any]
    future: Future[Any]


class PostProcessor:
    """Decodes and judges. Images, urgent uses and others take turns, a batch of the first and one of each other."""

    def __init__(
        self,
        model: Served,
        budget: ThreadBudget,
        rejoin: Callable[[list[ImageSequence]], None],
        judge_share: float = 1.0,
    ) -> None:
        """Start the thread. rejoin: takes images back that begin again; called in the thread.

        judge_share: of the images those that are judged, by their ids; whoever awaits a verdict is judged besides.
        """
        self._model, self._budget, self._rejoin, self._judge_share = model, budget, rejoin, judge_share
        self._sequences: deque[ImageSequence] = deque()
        self._uses: deque[_Use] = deque()
        self._urgent: deque[_Use] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="postprocessor", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether work that is handed in will be done."""
        return self._thread.is_alive()

    def finish(self, sequence: ImageSequence) -> None:
        """Decode and judge a complete image, and settle its future."""
        sequence.ready = torch.cuda.current_stream().record_event() if sequence.tokens.is_cuda else None
        with self._changed:
            self._sequences.append(sequence)
            self._changed.notify_all()

    def backlog(self) -> int:
        """Number of images that wait to be decoded."""
        return len(self._sequences)

    def wait_below(self, backlog: int) -> None:
        """Wait until fewer than `backlog` images wait."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._sequences) < backlog)

    def use(self, function: Callable[[Served], Result], urgent: bool = False) -> Future[Result]:
        """Call `function` with the model when its turn comes. Raises Unavailable when too many wait, unless `urgent`.

        urgent: it takes turns with all that are not.
        """
        future: Future[Result] = Future()
        with self._changed:
            if len(self._uses) >= USES:
                self._uses = deque(use for use in self._uses if not use.future.cancelled())
            if len(self._uses) >= USES and not urgent:
                raise Unavailable(f"{USES} uses of the model wait")
            (self._urgent if urgent else self._uses).append(_Use(function, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Do what was handed in and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        self._budget.lower_priority()
        with on_device(self._model.device), _side_stream(self._model.device):
            while self._wait_for_work():
                with self._budget.postprocessing():
                    self._finish(self._take_images())
                    self._run_use(self._urgent)
                    self._run_use(self._uses)

    def _wait_for_work(self) -> bool:
        """Wait for work; False once there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._sequences or self._urgent or self._uses or self._closed)
            return bool(self._sequences or self._urgent or self._uses)

    def _take_images(self) -> list[ImageSequence]:
        """The next images that somebody still waits for."""
        with self._changed:
            count = min(len(self._sequences), DECODE_BATCH)
            sequences = [self._sequences.popleft() for _ in range(count)]
            self._changed.notify_all()
        return [sequence for sequence in sequences if not sequence.future.done()]

    def _run_use(self, uses: deque[_Use]) -> None:
        with self._changed:
            use = uses.popleft() if uses else None
        if use is not None:
            self._budget.take_one()  # most of them decode
            _settle(use.future, lambda: use.function(self._model))

    def _finish(self, sequences: list[ImageSequence]) -> None:
        if not sequences:
            return
        try:
            results = self._results(sequences)
        except BaseException as error:
            if isinstance(error, BadNumber) and len(sequences) > 1:  # of one image: the others are sound
                for sequence in sequences:
                    self._finish([sequence])
            else:
                for sequence in sequences:
                    sequence.fail(explained(error))
            return
        for sequence, result in zip(sequences, results, strict=True):
            if not sequence.awaits_verdict or not result.is_unsafe:
                sequence.finish(result)
            elif begins_again(sequence):
                self._rejoin([sequence])
            else:
                sequence.refuse()

    def _results(self, sequences: list[ImageSequence]) -> list[ImageResult]:
        for sequence in sequences:
            if sequence.ready is not None:
                torch.cuda.current_stream().wait_event(sequence.ready)
        tokens = check_drawn(torch.stack([sequence.tokens for sequence in sequences]))
        tables = [sequence.request.codebook.pixel for sequence in sequences]
        same = all(table is tables[0] for table in tables)
        self._budget.take_one()  # a convolution's sums depend on the number of threads, and pixels must not
        with torch.no_grad():
            images = self._model.decode(tokens, tables[0] if same else torch.stack(tables))
        self._budget.take_to_postprocess()
        verdicts, facts = self._verdicts(sequences, images), self._model.facts
        parts = zip(sequences, tokens.cpu(), to_bytes(images), verdicts, strict=True)
        return [
            ImageResult(
                facts, each.request, own, image, verdict, each.experts, revised=each.revised, redraws=each.redraws
            )
            for each, own, image, verdict in parts
        ]

    def _verdicts(self, sequences: list[ImageSequence], images: Tensor) -> list[Verdict | None]:
        """The verdict on each image; None for those that are not judged."""
        judged = [i for i, sequence in enumerate(sequences) if self._is_judged(sequence)]
        verdicts: list[Verdict | None] = [None] * len(sequences)
        if judged:
            chosen = images if len(judged) == len(sequences) else images[judged]
            for i, verdict in zip(judged, self._model.judge(chosen), strict=True):
                verdicts[i] = verdict
        return verdicts

    def _is_judged(self, sequence: ImageSequence) -> bool:
        if sequence.awaits_verdict or self._judge_share == 1:
            return True
        return is_in_share(image_id(self._model.facts, sequence.request), self._judge_share)


def explained(error: BaseException) -> BaseException:
    """The error for a caller: a GPU out of memory is temporarily unavailable."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    torch.cuda.empty_cache()
    return Unavailable("the GPU is out of memory", retry_after=5.0)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current device of the calling thread, which begins with the first one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _side_stream(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _settle(future: Future[Result], compute: Callable[[], Result]) -> None:
    """Run `compute` into the future, unless that was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = compute()
    except BaseException as error:
        future.set_exception(explained(error))
    else:
        future.set_result(result)
