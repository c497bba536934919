"""One thread that makes pictures of tokens and has them judged, so that drawing goes on; and lets others use the model.

On a GPU its work runs on a stream of its own.
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
from engine.png import to_bytes
from engine.runner.batch import Served, check_drawn
from engine.scheduler.fair_queue import Drawn, Wanted
from engine.scheduler.thread_budget import ThreadBudget

Result = TypeVar("Result")

DECODED_TOGETHER = 8  # images that finish while others are decoded wait for a batch of at most this many
USES = 64  # other uses of the model that may wait


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens [N] of a wanted image and its expert; on a GPU `ready` says when they are there."""

    wanted: Wanted
    tokens: Tensor
    expert: int
    ready: torch.cuda.Event | None


@dataclass(frozen=True, eq=False)
class _Use:
    """Any other use of the model."""

    function: Callable[[Served], Any]
    future: Future[Any]


class PostProcessor:
    """Decodes and judges. Images and other uses take turns, a batch of one and one of the other."""

    def __init__(self, model: Served, cores: ThreadBudget) -> None:
        """Start the thread."""
        self._model, self._cores = model, cores
        self._images: deque[_Tokens] = deque()
        self._uses: deque[_Use] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is handed in will be done."""
        return self._thread.is_alive()

    def finish(self, wanted: Wanted, tokens: Tensor, expert: int) -> None:
        """Decode and judge an image, and hand it to its call; expert: which one of its edit applied."""
        ready = torch.cuda.current_stream().record_event() if tokens.is_cuda else None
        with self._changed:
            self._images.append(_Tokens(wanted, tokens, expert, ready))
            self._changed.notify_all()

    def backlog(self) -> int:
        """How many images wait to be decoded."""
        return len(self._images)

    def wait_below(self, backlog: int) -> None:
        """Wait until fewer than `backlog` images wait."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._images) < backlog)

    def use(self, function: Callable[[Served], Result]) -> Future[Result]:
        """Call `function` with the model when its turn comes. Raises Unavailable when too many wait."""
        future: Future[Result] = Future()
        with self._changed:
            if len(self._uses) >= USES:
                self._uses = deque(use for use in self._uses if not use.future.cancelled())
            if len(self._uses) >= USES:
                raise Unavailable(f"{USES} uses of the model wait")
            self._uses.append(_Use(function, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Do what was handed in and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        self._cores.step_back()
        with on_device(self._model.device), _side_stream(self._model.device):
            while self._work_comes():
                with self._cores.finishing():
                    self._finish(self._taken())
                    self._let_use()

    def _work_comes(self) -> bool:
        """Wait for work; False once there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._images or self._uses or self._closed)
            return bool(self._images or self._uses)

    def _taken(self) -> list[_Tokens]:
        """The next images that somebody still waits for."""
        with self._changed:
            count = min(len(self._images), DECODED_TOGETHER)
            images = [self._images.popleft() for _ in range(count)]
            self._changed.notify_all()
        return [image for image in images if not image.wanted.call.future.done()]

    def _let_use(self) -> None:
        with self._changed:
            use = self._uses.popleft() if self._uses else None
        if use is not None:
            self._cores.take_one()  # most of them decode
            _settle(use.future, lambda: use.function(self._model))

    def _finish(self, images: list[_Tokens]) -> None:
        if not images:
            return
        try:
            finished = self._drawn(images)
        except BaseException as error:
            if isinstance(error, BadNumber) and len(images) > 1:  # one image's: the others are sound
                for image in images:
                    self._finish([image])
            else:
                for image in images:
                    image.wanted.fail(explained(error))
            return
        for image, drawn in zip(images, finished, strict=True):
            image.wanted.call.add(image.wanted.index, drawn)

    def _drawn(self, images: list[_Tokens]) -> list[Drawn]:
        for image in images:
            if image.ready is not None:
                torch.cuda.current_stream().wait_event(image.ready)
        tokens = check_drawn(torch.stack([image.tokens for image in images]))
        tables = [image.wanted.request.codebook.pixel for image in images]
        same = all(table is tables[0] for table in tables)
        self._cores.take_one()  # a convolution's sums depend on the number of threads, and pixels must not
        with torch.no_grad():
            pictures = self._model.decode(tokens, tables[0] if same else torch.stack(tables))
        self._cores.take_to_finish()
        verdicts = self._model.judge(pictures)
        experts = [image.expert for image in images]
        return [Drawn(*parts) for parts in zip(tokens.cpu(), to_bytes(pictures), verdicts, experts, strict=True)]


def explained(error: BaseException) -> BaseException:
    """The error for a caller: a full GPU is a matter of time."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    torch.cuda.empty_cache()
    return Unavailable("the GPU is out of memory", retry_after=5.0)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Let the calling thread's work go to this GPU, where it is one: each thread begins with the first."""
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
