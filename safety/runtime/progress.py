"""Progress reports of a running loop; the receiver may end it.

Knows nothing of jobs or of where progress is shown.
"""

from __future__ import annotations

from typing import Protocol

from core.errors import SafeCBError


class Cancelled(SafeCBError):
    """The receiver of the reports ends the loop; results cached so far stay valid for a resume."""


class Progress(Protocol):
    """The receiver of progress reports; the loop reports at least every five seconds."""

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """Take a report: `done` of `total` steps of `phase` are over in `round`, 0 before the first.

        An exception from here (Cancelled) ends the loop.
        """
