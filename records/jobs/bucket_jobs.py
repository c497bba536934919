"""Jobs in a bucket that several machines share; the files an attempt works with stay on its own machine.

    jobs/000000000000            a log of the jobs, each as it was queued
    job/ID/records/000000000000  a log of the later states of one job; the last one counts
    job/ID/events/000000000000   a log of its events
    job/ID/NAME.json             a value that its first attempt decided
    job/ID/alive-1, dead-1, ...  signs of life (see signs_of_life.py)

Knows logs and records. Knows nothing of what a job does.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from core.bucket.bucket import Bucket
from core.bucket.log import Log
from core.clock import utc_now
from core.errors import NotFound, SafeCBError
from core.json_records import from_object, to_json, to_object
from records.jobs.claim import claim, has_claim, is_claimed
from records.jobs.job import JobRecord
from records.jobs.signs_of_life import SignsOfLife

OPEN_LOGS = 64  # of jobs that are looked at; what they remember is read again after that


class BucketJobs:
    """The jobs of a bucket; `root` is this machine's folder for their files. See JobPlace for its methods."""

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self._bucket, self._root = bucket, root
        self._jobs, self._signs = Log(bucket, "jobs"), SignsOfLife(bucket)
        self._generation = self._jobs.generation
        self._queued: dict[str, JobRecord] = {}  # as in the log of the jobs
        self._ended: dict[str, JobRecord] = {}  # they change no more
        self._logs: OrderedDict[str, Log] = OrderedDict()
        self._lock = RLock()

    def add(self, record: JobRecord, check: Callable[[], None]) -> None:
        """See JobPlace: the next number of the log is written, or another job was first and all is checked again."""
        while True:
            last = self._jobs.last()
            check()
            if self._jobs.append(0 if last is None else last[0] + 1, to_object(record)):
                return

    def ids(self) -> Sequence[str]:
        """See JobPlace."""
        with self._lock:
            self._jobs.last()
            if self._jobs.generation != self._generation:  # the bucket was put back
                self._generation = self._jobs.generation
                for known in (self._queued, self._ended, self._logs):
                    known.clear()
            for value in self._jobs.all(len(self._queued) - 1):
                record = from_object(JobRecord, value)
                self._queued[record.id] = record
            return list(self._queued)

    def read(self, id: str) -> JobRecord:
        """See JobPlace."""
        return self._last(id)[1]

    def change(self, id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """See JobPlace."""
        while True:
            number, record = self._last(id)
            changed = change(record)
            if self._log(f"job/{id}/records").append(number + 1, to_object(changed)):
                return changed

    def append_event(self, id: str, event: Mapping[str, Any]) -> int:
        """See JobPlace."""
        self._check(id)
        log = self._log(f"job/{id}/events")
        while True:
            last = log.last()
            number = 0 if last is None else last[0] + 1
            if log.append(number, {**event, "id": number + 1, "at": utc_now()}):
                return number + 1

    def events(self, id: str, after: int) -> Sequence[Mapping[str, Any]]:
        """See JobPlace."""
        self._check(id)
        return self._log(f"job/{id}/events").all(max(after, 0) - 1)

    def folder(self, id: str) -> Path:
        """See JobPlace."""
        self._check(id)
        folder = self._root / id / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def once(self, id: str, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  (JSON)
        """See JobPlace."""
        key = f"job/{id}/{name}.json"
        if (data := self._bucket.read(key)) is None:
            self._bucket.create(key, to_json(name, {"value": make()}))
            data = self._bucket.read(key)
        return json.loads(data or b"null")["value"]

    @contextmanager
    def claim(self, id: str, attempt: int) -> Iterator[None]:
        """See JobPlace."""
        with claim(self.folder(id), attempt), self._signs.given(id, attempt):
            yield

    def is_claimed(self, id: str, attempt: int) -> bool:
        """See JobPlace: the kernel says it of an attempt on this machine, the signs of life of one elsewhere."""
        if attempt < 1:
            return False
        if has_claim(self.folder(id), attempt):
            if is_claimed(self.folder(id), attempt):
                return True
            self._signs.declare_dead(id, attempt)  # the other machines need not wait
            return False
        return self._signs.shown(id, attempt)

    def _last(self, id: str) -> tuple[int, JobRecord]:
        """Return the state of a job and its number in the log of its states: -1 for that of the log of the jobs."""
        with self._lock:
            if id in self._ended:
                return -1, self._ended[id]
        self._check(id)
        try:
            last = self._log(f"job/{id}/records").last()
            number, record = (-1, self._queued[id]) if last is None else (last[0], from_object(JobRecord, last[1]))
        except ValueError as error:
            raise SafeCBError(f"the record of job {id} is damaged: {error}; restore the bucket from a backup") from None
        if record.ended is not None:
            self._ended[id] = record
        return number, record

    def _check(self, id: str) -> None:
        """Raise NotFound unless there is such a job."""
        if id not in self._queued and id not in self.ids():
            raise NotFound(f"there is no job {id!r}")

    def _log(self, name: str) -> Log:
        with self._lock:
            log = self._logs.setdefault(name, Log(self._bucket, name))
            self._logs.move_to_end(name)
            if len(self._logs) > OPEN_LOGS:
                self._logs.popitem(last=False)
            return log
