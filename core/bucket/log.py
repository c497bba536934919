"""Log: records in objects 000000000000, 000000000001, ...; whoever creates a number first has written it.

No lock, no clock, no overwritten object: any number of processes on any number of machines append, and all read the
same records in the same order. Each record carries a random mark, so that a writer recognises its own.

Knows numbers and bytes. Knows nothing of what a record says.
"""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any

from core.bucket.bucket import Bucket
from core.errors import SafeCBError
from core.json_records import from_json, to_json

VERIFY_EVERY_S = 10.0  # how often the last known record is read again: a bucket may be replaced by a backup
READERS = 8
STEPS = 16  # records that are read one after the other; of more the bucket is asked for a list


class Log:
    """The log in the folder `name` of a bucket; thread-safe. What was read once is remembered."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._folder = bucket, f"{name}/"
        self._records: dict[int, bytes] = {}  # by number, as far as they were needed
        self._last = -1
        self._verified = -VERIFY_EVERY_S
        self._lock = RLock()
        self.generation = 0  # one more each time that the log is not the one that was read before

    def last(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest record and its number, None of an empty log. One request where nothing is new.

        Raises NoBucket, and ValueError for a damaged record.
        """
        with self._lock:
            self._verify()
            for _ in range(STEPS):
                if (data := self._bucket.read(self._key(self._last + 1))) is None:
                    break
                self._last += 1
                self._records[self._last] = data
            else:  # far behind: what lies in between is read when it is needed
                self._jump()
            return None if self._last < 0 else (self._last, self._record(self._last))

    def all(self, after: int = -1) -> list[dict[str, Any]]:
        """Return the records with a number above `after`, oldest first. Raises as `last`."""
        with self._lock:
            self.last()
            missing = [number for number in range(after + 1, self._last + 1) if number not in self._records]
            with ThreadPoolExecutor(READERS) as pool:
                self._records.update(zip(missing, pool.map(self._read, missing), strict=True))
            return [self._record(number) for number in range(after + 1, self._last + 1)]

    def append(self, number: int, record: dict[str, Any]) -> bool:
        """Write the record of a number, one above the last; return False where another has written that number.

        Raises NoBucket: then it may have been written, or be written yet.
        """
        data = to_json("record", {"mark": secrets.token_hex(8), "record": record})
        with self._lock:
            # A bucket that was put back meanwhile has no such record: a gap would end the log there for good.
            if number and self._bucket.read(self._key(number - 1)) is None:
                self._forget()
                return False
            if not self._bucket.create(self._key(number), data):
                return False
            self._records[number], self._last = data, max(self._last, number)
            return True

    def _verify(self) -> None:
        """Read the last known record again from time to time, and begin anew where it is another one or gone."""
        now = time.monotonic()
        if now - self._verified < VERIFY_EVERY_S:
            return
        if self._last < 0:
            self._jump()
        elif self._bucket.read(self._key(self._last)) != self._records.get(self._last):
            self._forget()
            self._jump()
        self._verified = now

    def _forget(self) -> None:
        self._records, self._last, self._verified = {}, -1, -VERIFY_EVERY_S
        self.generation += 1

    def _jump(self) -> None:
        """Go to the last record by a list of all."""
        names = self._bucket.names(self._folder)
        last = self._last
        while f"{last + 1:012d}" in names:
            last += 1
        if last > self._last:
            self._records[last], self._last = self._read(last), last

    def _read(self, number: int) -> bytes:
        if (data := self._bucket.read(self._key(number))) is None:
            raise SafeCBError(f"{self._bucket.url}/{self._key(number)} is missing; restore it from a backup")
        return data

    def _record(self, number: int) -> dict[str, Any]:
        record = from_json(self._records[number])["record"]
        if not isinstance(record, dict):
            raise ValueError(f"{self._key(number)} holds no record")
        return record

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:012d}"
