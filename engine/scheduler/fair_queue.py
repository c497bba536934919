"""Calls for images, and the line in which they wait: one image of each caller in turn, so that none crowds others out.

Knows requests and futures; knows nothing of models and threads.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

from torch import Tensor

from core.errors import BadNumber
from engine.model import ImageRequest, Verdict


@dataclass(frozen=True)
class Drawn:
    """One finished image: tokens [N] int64, image [H, W, 3] uint8, both on the CPU, and the model's own verdict.

    expert: the expert of its version's output edit that applied, or NO_EXPERT.
    """

    tokens: Tensor
    image: Tensor
    verdict: Verdict
    expert: int


@dataclass(frozen=True, eq=False)
class Part:
    """The first tokens [n] int64, on the CPU, of image `index` of a call."""

    index: int
    request: ImageRequest
    tokens: Tensor


@dataclass(frozen=True)
class Place:
    """A call's place in the queue: `ahead` images begin before its first; `seconds` until its last one is drawn.

    An estimate: if nobody joins or leaves, and no image begins again.
    """

    ahead: int
    seconds: float


@dataclass(eq=False)
class GenerateCall:
    """A list of images that somebody asked for. `begun` of them have left the line; `drawn` are finished, by index.

    The future stays pending until the end, so that it can be cancelled at any time. `on_part` hears of each image a few
    times on the way.
    """

    requests: Sequence[ImageRequest]
    caller: str
    on_part: Callable[[Part], None] | None = None
    future: Future[list[Drawn]] = field(default_factory=Future)
    begun: int = 0
    drawn: dict[int, Drawn] = field(default_factory=dict)

    def add(self, index: int, drawn: Drawn) -> None:
        """Take a finished image; the last one settles the call."""
        self.drawn[index] = drawn
        if len(self.drawn) == len(self.requests):
            with suppress(InvalidStateError):  # cancelled a moment ago
                self.future.set_result([self.drawn[i] for i in range(len(self.requests))])

    def fail(self, error: BaseException) -> None:
        """Settle the call with an error, unless it is settled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Image `index` of a call."""

    call: GenerateCall
    index: int

    @property
    def request(self) -> ImageRequest:
        """What is to be drawn."""
        return self.call.requests[self.index]

    def fail(self, error: BaseException) -> None:
        """Settle its call with an error, which says of what image a bad number is."""
        if isinstance(error, BadNumber):
            seed, version = self.request.sampling.seed, self.request.codebook.version
            error = BadNumber(error.part, f"{error.detail} in the image of seed {seed} under {version}", version)
        self.call.fail(error)


class FairQueue:
    """Calls whose images wait to be drawn. Images of one caller keep their order; callers take turns."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[GenerateCall]] = {}  # whose turn it is comes first

    def __len__(self) -> int:
        return sum(len(call.requests) - call.begun for calls in self._callers.values() for call in calls)

    def over(self, caller: str, count: int, limit: int) -> tuple[int, int]:
        """How many of `count` more images of a caller are too many: for its share of `limit`, and for all who wait.

        They may join where either is 0 or less: whoever fills the line keeps nobody else out. All who wait have an
        equal share. Nobody who is there loses a place, so that the line may grow longer than its limit.
        """
        waiting = sum(len(call.requests) - call.begun for call in self._callers.get(caller, ()))
        return waiting + count - limit // len({caller, *self._callers}), len(self) + count - limit

    def join(self, call: GenerateCall) -> None:
        """Put a call of at least one image at the end of its caller's line."""
        self._callers.setdefault(call.caller, deque()).append(call)

    def first(self) -> Wanted | None:
        """The image whose turn it is."""
        for calls in self._callers.values():
            return Wanted(calls[0], calls[0].begun)
        return None

    def take(self) -> Wanted:
        """Take the image whose turn it is out of the line."""
        caller, calls = next(iter(self._callers.items()))
        call = calls[0]
        wanted = Wanted(call, call.begun)
        call.begun += 1
        if call.begun == len(call.requests):
            calls.popleft()
        del self._callers[caller]
        if calls:
            self._callers[caller] = calls  # behind the others
        return wanted

    def leave(self) -> None:
        """Let go of calls that are settled: cancelled or failed."""
        for caller, calls in list(self._callers.items()):
            waiting = deque(call for call in calls if not call.future.done())
            if waiting:
                self._callers[caller] = waiting
            else:
                del self._callers[caller]

    def order(self) -> list[Wanted]:
        """The images in the order in which they would be taken."""
        lines = [
            [Wanted(call, i) for call in calls for i in range(call.begun, len(call.requests))]
            for calls in self._callers.values()
        ]
        return [wanted for turn in zip_longest(*lines) for wanted in turn if wanted is not None]


class Refused:
    """Rows of images that found the line full, and when their callers were told to come again: others come after them.

    Without it all who are refused while there is no room come at once when there is, and most of them in vain.
    """

    def __init__(self) -> None:
        self._due: dict[str, list[tuple[float, int]]] = {}

    def add(self, caller: str, due: float, rows: int) -> None:
        """Note that a caller will be back at `due`."""
        insort(self._due.setdefault(caller, []), (due, rows))

    def let_in(self, caller: str) -> None:
        """Forget the first of a caller, who is back."""
        if due := self._due.get(caller):
            due.pop(0)

    def forget(self, now: float) -> None:
        """Forget those that were due by now."""
        left = ((name, [entry for entry in due if entry[0] > now]) for name, due in self._due.items())
        self._due = {name: due for name, due in left if due}

    def before(self, caller: str, rows: int) -> int:
        """How many rows come before so many more of a caller's: callers take turns, so that none holds up another."""
        waiting = {name: sum(of for _, of in due) for name, due in self._due.items()}
        own = waiting.pop(caller, 0)
        return own + sum(min(own + rows, of) for of in waiting.values())
