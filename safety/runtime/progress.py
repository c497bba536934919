"""Who watches a running loop: told of every step, and able to end it.

Knows nothing of jobs or of where progress is shown.
"""

from __future__ import annotations

from typing import Protocol

from core.errors import SafeCBError


class Cancelled(SafeCBError):
    """The watcher wants the loop to end; what is kept so far stays good for a later resume."""


class Progress(Protocol):
    """Told of progress by the loop, at least every five seconds."""

    def progress(self, phase: str, done: int, total: int, round: int) -> None:
        """Hear that `done` of `total` steps of `phase` are over in `round`, 0 before the first.

        An exception from here (Cancelled) ends the loop.
        """
