"""The fair queue of waiting images: callers take turns, an image each, so that none crowds others out.

Knows sequences and the names of their callers; knows nothing of models and threads.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from engine.runner.sequence import ImageSequence

_RETURNED = "\0returned"  # in place of the caller of images that come back; no caller has this name


@dataclass(frozen=True)
class Place:
    """A call's place in the queue: `ahead` images begin before its first; `seconds` until its last one is drawn.

    An estimate: if no other joins or leaves, and no image begins again.
    """

    ahead: int
    seconds: float


class FairQueue:
    """Images that wait to be drawn. Images of one caller stay in their order; callers take turns."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[ImageSequence]] = {}  # the caller whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def waiting(self, caller: str) -> int:
        """Number of images of a caller."""
        return len(self._callers.get(caller, ()))

    def over(self, caller: str, count: int, limit: int) -> tuple[int, int]:
        """By how many images `count` more of a caller exceed (a) its fair share of `limit` and (b) the whole queue.

        They are admitted if either is <= 0: a caller that fills the queue keeps no other out. All callers that wait
        have an equal share. No image loses its place, so that the queue may grow beyond its limit.
        """
        callers = {caller, *self._callers} - {_RETURNED}
        return self.waiting(caller) + count - limit // len(callers), len(self) + count - limit

    def rejoin(self, sequences: Sequence[ImageSequence]) -> None:
        """Put images back that were taken: they come before all others, in their order."""
        returned = [*self._callers.pop(_RETURNED, ()), *sequences]
        self._callers = {_RETURNED: deque(returned), **self._callers}

    def join(self, caller: str, sequences: Sequence[ImageSequence]) -> None:
        """Append images, at least one, to those of their caller."""
        self._callers.setdefault(caller, deque()).extend(sequences)

    def first(self) -> ImageSequence | None:
        """The image whose turn it is."""
        for sequences in self._callers.values():
            return sequences[0]
        return None

    def take(self) -> ImageSequence:
        """Remove and return the image whose turn it is."""
        caller, sequences = next(iter(self._callers.items()))
        sequence = sequences.popleft()
        if caller == _RETURNED and sequences:
            return sequence  # those that came back go on first
        del self._callers[caller]
        if sequences:
            self._callers[caller] = sequences  # behind the other callers
        return sequence

    def drop_settled(self) -> None:
        """Drop the images for which nobody waits: cancelled or failed."""
        for caller, sequences in list(self._callers.items()):
            waiting = deque(sequence for sequence in sequences if not sequence.future.done())
            if waiting:
                self._callers[caller] = waiting
            else:
                del self._callers[caller]

    def order(self) -> list[tuple[str, ImageSequence]]:
        """The images with their callers, in the order in which they would be taken."""
        lines = {name: [(name, each) for each in sequences] for name, sequences in self._callers.items()}
        returned = lines.pop(_RETURNED, [])
        return returned + [entry for turn in zip_longest(*lines.values()) for entry in turn if entry is not None]


class Refused:
    """Refused calls by caller: their KV rows, and when they are to be retried. Later calls come after them.

    Without it all that are refused while the queue is full come back simultaneously, and most of them in vain.
    """

    def __init__(self) -> None:
        self._due: dict[str, list[tuple[float, int]]] = {}

    def add(self, caller: str, due: float, kv_rows: int) -> None:
        """Note that a call of a caller will be retried at `due`."""
        insort(self._due.setdefault(caller, []), (due, kv_rows))

    def admit(self, caller: str) -> None:
        """Forget the first call of a caller, which is back."""
        if due := self._due.get(caller):
            due.pop(0)

    def forget(self, now: float) -> None:
        """Forget the calls that were due by now."""
        left = ((name, [entry for entry in due if entry[0] > now]) for name, due in self._due.items())
        self._due = {name: due for name, due in left if due}

    def before(self, caller: str, kv_rows: int) -> int:
        """KV rows that come before `kv_rows` more of a caller: callers take turns, so that none holds up another."""
        waiting = {name: sum(rows for _, rows in due) for name, due in self._due.items()}
        own = waiting.pop(caller, 0)
        return own + sum(min(own + kv_rows, rows) for rows in waiting.values())
