"""Job journal: the jobs of a service, their states and events; the source of truth about every job.

Joins the rules of a record (records/jobs/job.py) and a place of records: a folder of one machine, or a bucket that
several share. Knows nothing of queues, of Redis or of what a job does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from core.bucket.bucket import Bucket
from core.errors import Conflict, NoStorage, SafeCBError
from core.json_records import plain
from core.settings import Settings
from core.wire import FUNCTIONS, IMPROVE, SHADOW
from records.jobs.bucket_jobs import BucketJobs
from records.jobs.folder_jobs import FolderJobs
from records.jobs.job import Changes, JobRecord
from records.jobs.place import JobPlace

__all__ = ["IMPROVE", "SHADOW", "JobRecord", "Journal"]

Jobs: TypeAlias = list[JobRecord]  # inside Journal the name `list` is a method
Events: TypeAlias = list[dict[str, Any]]


class Journal:
    """The jobs of a place, or of a folder. Safe to share between threads and processes; readers take no lock.

    Where the place is a bucket, every method raises NoBucket while its server does not answer.
    """

    def __init__(self, place: JobPlace | Path) -> None:
        self._place: JobPlace = FolderJobs(place) if isinstance(place, Path) else place
        # How seldom a job that reports a hundred times a second may look at its record, and write its progress.
        self.look_every_s, self.write_every_s = (0.0, 0.0) if isinstance(place, Path) else (1.0, 5.0)

    @classmethod
    def of(cls, settings: Settings, patience: float = 0.0) -> Journal:
        """Return the journal of the settings. patience: seconds for which a use waits for a bucket that is away."""
        folder = settings.home / "jobs"
        return cls(folder if settings.bucket is None else BucketJobs(Bucket(settings.bucket, patience), folder))

    def create(self, kind: str, request: Mapping[str, Any]) -> JobRecord:
        """Create a queued job and return it.

        Raises BadInput if `request` is not JSON, and Conflict, naming the other, for a job that workers run while
        another of its kind is queued or running.
        """
        record = JobRecord.queued(_new_id(), kind, plain("request", request))

        def check() -> None:
            if kind in FUNCTIONS and (other := self.running(kind)) is not None:
                raise Conflict(f"{kind} job {other.id} is {other.status}; only one runs at a time")

        self._place.add(record, check)
        return record

    def get(self, id: str) -> JobRecord:
        """Return a job. Raises NotFound, and SafeCBError if its record is damaged."""
        return self._place.read(id)

    def list(self, most: int | None = None, before: str = "") -> Jobs:
        """Return the newest jobs, all or at most `most`, older than the job `before` if one is named.

        Jobs whose record is damaged are left out; `get` has the reason. Raises NoAccess if a record cannot be read now:
        whether that job still runs is unknown then.
        """
        return [*islice(self._newest(before), most)]

    def running(self, kind: str = IMPROVE) -> JobRecord | None:
        """Return the job of a kind that is queued or running, if any."""
        return next((job for job in self._newest() if job.kind == kind and not job.ended), None)

    def newest(self, kind: str) -> JobRecord | None:
        """Return the newest job of a kind, if any."""
        return next((job for job in self._newest() if job.kind == kind), None)

    def rates(self) -> dict[str, float]:
        """Return the rates of the last finished improve job, as its plan has them; empty where there is none."""
        for job in self._newest():
            if job.kind == IMPROVE and job.status == "finished" and job.plan is not None:
                return dict(job.plan["rates"])
        return {}

    def _newest(self, before: str = "") -> Iterator[JobRecord]:
        for id in sorted(self._place.ids(), reverse=True):
            if before and id >= before:
                continue
            try:
                yield self.get(id)
            except NoStorage:
                raise
            except SafeCBError:
                continue

    def begin_attempt(self, id: str) -> int:
        """Begin the next attempt of a job and return its number: the fencing token of all that it writes.

        Raises NotFound, and Conflict where the job has ended.
        """
        begun = self._place.change(
            id, lambda record: replace(record.moved({"status": "running"}), attempt=record.attempt + 1)
        )
        return begun.attempt

    def update(self, id: str, /, *, attempt: int | None = None, **changes: Unpack[Changes]) -> JobRecord:
        """Change some fields of a job and return it; the times of start and end follow the status.

        attempt: the fencing token; a worker always passes its own. Raises NotFound, BadInput for an unknown field or a
        value of a wrong type, and Conflict for a stale attempt, an illegal transition, or a job that has ended.
        """

        def change(record: JobRecord) -> JobRecord:
            if attempt is not None and attempt != record.attempt:
                raise Conflict(f"attempt {attempt} of job {id} is stale: attempt {record.attempt} has taken over")
            return record.moved(changes)

        return self._place.change(id, change)

    def append_event(self, id: str, event: Mapping[str, Any]) -> int:
        """Append an event and return its number: 1, 2, ... Raises NotFound, and BadInput if it is not JSON."""
        return self._place.append_event(id, event)

    def events(self, id: str, after: int) -> Events:
        """Return the events with a number above `after`, oldest first, each with its number `id` and its time `at`.

        Raises NotFound, and SafeCBError if one is damaged.
        """
        try:
            return [dict(event) for event in self._place.events(id, after)]
        except ValueError as error:
            raise SafeCBError(f"the events of job {id} are damaged: {error}") from None

    def path(self, id: str) -> Path:
        """Return this machine's folder for the job's own files. Raises NotFound."""
        return self._place.folder(id)

    def once(self, id: str, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  (JSON)
        """Return a JSON value of a job that its first attempt decides, whichever machines make the others."""
        return self._place.once(id, name, make)

    def claim(self, id: str, attempt: int) -> AbstractContextManager[None]:
        """Show until the block or the process ends that an attempt (from 1) lives."""
        return self._place.claim(id, attempt)

    def is_claimed(self, id: str, attempt: int) -> bool:
        """Whether an attempt lives; False for one that never began."""
        return self._place.is_claimed(id, attempt)


def _new_id() -> str:
    """Return 24 hex digits: the time, so that ids sort by age, then random digits, so that no two are equal."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"
