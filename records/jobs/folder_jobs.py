"""Jobs in a folder of one machine: one folder a job, consistent after a crash of any process.

    root/<id>/record.json    the state of the job, replaced atomically
    root/<id>/events.jsonl   its events, appended
    root/<id>/work/          the job's own files
    root/<id>/.lock          held by every writer of this job; root/.lock by every creation

Knows records on disk. Knows nothing of what a job does.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

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
from core.errors import NotFound, SafeCBError
from core.json_records import decode, encode, from_json, to_json
from core.storage import naming
from records.jobs.claim import claim, is_claimed
from records.jobs.job import JobRecord

ID = re.compile(r"[0-9a-f]{24}")


class FolderJobs:
    """The jobs in the folder `root`; readers take no lock. See JobPlace for its methods."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, record: JobRecord, check: Callable[[], None]) -> None:
        """See JobPlace."""
        with naming(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
        with locked(self._root / ".lock"), naming(self._root):
            check()
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

    def ids(self) -> Sequence[str]:
        """See JobPlace."""
        return [*filter(ID.fullmatch, list_folder(self._root))]

    def read(self, id: str) -> JobRecord:
        """See JobPlace."""
        path = self._folder(id) / "record.json"
        try:
            return decode(JobRecord, read_file(path))
        except (OSError, ValueError) as error:
            detail = f"the record of job {id} is damaged: {error}; restore {path} from a backup or move its folder away"
            raise SafeCBError(detail) from None

    def change(self, id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """See JobPlace."""
        with locked(self._folder(id) / ".lock"):
            record = change(self.read(id))
            replace_file(self._root / id / "record.json", encode(record))
        return record

    def append_event(self, id: str, event: Mapping[str, Any]) -> int:
        """See JobPlace."""
        path = self._folder(id) / "events.jsonl"
        with locked(self._folder(id) / ".lock"):
            number = len(read_lines(path)) + 1
            append_line(path, to_json("event", {**event, "id": number, "at": utc_now()}))
        return number

    def events(self, id: str, after: int) -> Sequence[Mapping[str, Any]]:
        """See JobPlace."""
        return [from_json(line) for line in read_lines(self._folder(id) / "events.jsonl")[max(after, 0) :]]

    def folder(self, id: str) -> Path:
        """See JobPlace."""
        return self._folder(id) / "work"

    def once(self, id: str, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  (JSON)
        """See JobPlace."""
        path = self.folder(id) / f"{name}.json"
        if not path.exists():
            replace_file(path, json.dumps(make()).encode())
        return json.loads(path.read_text())

    def claim(self, id: str, attempt: int) -> AbstractContextManager[None]:
        """See JobPlace."""
        return claim(self.folder(id), attempt)

    def is_claimed(self, id: str, attempt: int) -> bool:
        """See JobPlace."""
        return is_claimed(self.folder(id), attempt)

    def _folder(self, id: str) -> Path:
        folder = self._root / id
        if not ID.fullmatch(id) or not folder.is_dir():
            raise NotFound(f"there is no job {id!r}")
        return folder
