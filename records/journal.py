"""Job journal: one folder per job, written so that a crash of any process leaves a consistent record.

    root/<id>/record.json    the state of the job, replaced atomically
    root/<id>/events.jsonl   its events, appended
    root/<id>/work/          the job's own files
    root/<id>/.lock          held by every writer of this job; root/.lock by every creation

Knows records on disk. Knows nothing of queues, of Redis or of what a job does.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from core.atomic import (
    append_line,
    list_folder,
    locked,
    read_file,
    read_lines,
    replace_file,
    reveal_folder,
    write_file,
)
from core.clock import utc_now
from core.errors import Conflict, NoStorage, NotFound, SafeCBError
from core.json_records import decode, encode, from_json, plain, to_json
from core.storage import naming
from records.job import Changes, JobRecord

__all__ = ["IMPROVE", "JobRecord", "Journal"]

Jobs: TypeAlias = list[JobRecord]  # inside Journal the name `list` is a method
Events: TypeAlias = list[dict[str, Any]]

IMPROVE = "improve"
_ID = re.compile(r"[0-9a-f]{24}")


class Journal:
    """The jobs in the folder `root`. Safe to share between threads and processes; readers take no lock."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, kind: str, request: Mapping[str, Any]) -> JobRecord:
        """Create a queued job and return it.

        Raises BadInput if `request` is not JSON, and Conflict, naming the other, for a job of kind "improve" while
        another of that kind is queued or running.
        """
        record = JobRecord.queued(_new_id(), kind, plain("request", request))
        with naming(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
        with locked(self._root / ".lock"), naming(self._root):
            if kind == IMPROVE and (other := self.running()) is not None:
                raise Conflict(f"improve job {other.id} is {other.status}; only one runs at a time")
            hidden = self._root / ".new"
            if hidden.exists():  # a crash left it
                shutil.rmtree(hidden)
            try:
                (hidden / "work").mkdir(parents=True)
                write_file(hidden / "record.json", encode(record))
                reveal_folder(hidden, self._root / record.id)
            except Exception:  # for example, a full disk
                shutil.rmtree(hidden, ignore_errors=True)
                raise
        return record

    def get(self, id: str) -> JobRecord:
        """Return a job. Raises NotFound, and SafeCBError if its record is damaged."""
        path = self._folder(id) / "record.json"
        try:
            return decode(JobRecord, read_file(path))
        except (OSError, ValueError) as error:
            detail = f"the record of job {id} is damaged: {error}; restore {path} from a backup or move its folder away"
            raise SafeCBError(detail) from None

    def list(self, most: int | None = None, before: str = "") -> Jobs:
        """Return the newest jobs, all or at most `most`, older than the job `before` if one is named.

        Jobs whose record is damaged are left out; `get` has the reason. Raises NoAccess if a record cannot be read now:
        whether that job still runs is unknown then.
        """
        return [*islice(self._newest(before), most)]

    def running(self) -> JobRecord | None:
        """Return the improve job that is queued or running, if any."""
        return next((job for job in self._newest() if job.kind == IMPROVE and not job.ended), None)

    def rates(self) -> dict[str, float]:
        """Return the rates of the last finished improve job, as its plan has them; empty where there is none."""
        for job in self._newest():
            if job.kind == IMPROVE and job.status == "finished" and job.plan is not None:
                return dict(job.plan["rates"])
        return {}

    def _newest(self, before: str = "") -> Iterator[JobRecord]:
        for id in sorted(filter(_ID.fullmatch, list_folder(self._root)), reverse=True):
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
        with self._changing(id) as record:
            self._write(replace(record.moved({"status": "running"}), attempt=record.attempt + 1))
            return record.attempt + 1

    def update(self, id: str, /, *, attempt: int | None = None, **changes: Unpack[Changes]) -> JobRecord:
        """Change some fields of a job and return it; the times of start and end follow the status.

        attempt: the fencing token; a worker always passes its own. Raises NotFound, BadInput for an unknown field or a
        value of a wrong type, and Conflict for a stale attempt, an illegal transition, or a job that has ended.
        """
        with self._changing(id) as record:
            if attempt is not None and attempt != record.attempt:
                raise Conflict(f"attempt {attempt} of job {id} is stale: attempt {record.attempt} has taken over")
            return self._write(record.moved(changes))

    def append_event(self, id: str, event: Mapping[str, Any]) -> int:
        """Append an event and return its number: 1, 2, ... Raises NotFound, and BadInput if it is not JSON."""
        path = self._folder(id) / "events.jsonl"
        with locked(self._folder(id) / ".lock"):
            number = len(read_lines(path)) + 1
            append_line(path, to_json("event", {**event, "id": number, "at": utc_now()}))
        return number

    def events(self, id: str, after: int) -> Events:
        """Return the events with a number above `after`, oldest first, each with its number `id` and its time `at`.

        Raises NotFound, and SafeCBError if a line is damaged.
        """
        try:
            return [from_json(line) for line in read_lines(self._folder(id) / "events.jsonl")[max(after, 0) :]]
        except ValueError as error:
            raise SafeCBError(f"the events of job {id} are damaged: {error}") from None

    def path(self, id: str) -> Path:
        """Return the existing folder for the job's own files. Raises NotFound."""
        return self._folder(id) / "work"

    def _folder(self, id: str) -> Path:
        folder = self._root / id
        if not _ID.fullmatch(id) or not folder.is_dir():
            raise NotFound(f"there is no job {id!r}")
        return folder

    @contextmanager
    def _changing(self, id: str) -> Iterator[JobRecord]:
        with locked(self._folder(id) / ".lock"):
            yield self.get(id)

    def _write(self, record: JobRecord) -> JobRecord:
        replace_file(self._root / record.id / "record.json", encode(record))
        return record


def _new_id() -> str:
    """Return 24 hex digits: the time, so that ids sort by age, then random digits, so that no two are equal."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"
