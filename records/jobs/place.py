"""Place of a journal: where the records and events of jobs lie, and how an attempt shows that it lives.

Knows job records. Knows nothing of queues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from records.jobs.job import JobRecord


class JobPlace(Protocol):
    """One journal's place; safe to share between threads and processes."""

    def add(self, record: JobRecord, check: Callable[[], None]) -> None:
        """Add a new job, unless `check` raises; no other job is added between the two."""

    def ids(self) -> Sequence[str]:
        """Return the ids of all jobs, in any order."""

    def read(self, id: str) -> JobRecord:
        """Return a job. Raises NotFound, and SafeCBError if its record is damaged."""

    def change(self, id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Replace a job's record by what `change` makes of it, and return that; nothing comes in between."""

    def append_event(self, id: str, event: Mapping[str, Any]) -> int:
        """Append an event and return its number: 1, 2, ..."""

    def events(self, id: str, after: int) -> Sequence[Mapping[str, Any]]:
        """Return the events with a number above `after`. Raises ValueError if one is damaged."""

    def folder(self, id: str) -> Path:
        """Return this machine's folder for the job's own files, made if missing. Raises NotFound."""

    def once(self, id: str, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  (JSON)
        """Return the JSON value of this name, made by the first attempt that asks for it."""

    def claim(self, id: str, attempt: int) -> AbstractContextManager[None]:
        """Show until the block or the process ends that an attempt (from 1) lives."""

    def is_claimed(self, id: str, attempt: int) -> bool:
        """Whether an attempt lives; False for one that never began."""
