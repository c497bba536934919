"""Active alias in a bucket: a log of records, of which the last is the active one and all are the audit.

Whoever creates the next number has made the move; the others read it, and decide anew. Within `held` all reads give the
record that was the last at its beginning, so that a move rests on the state that was checked.

Knows a log. Knows nothing of the other objects in the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import local

from codebook.pointer import ActiveRecord, Outrun, Pointer
from core.bucket.bucket import Bucket
from core.bucket.log import Log
from core.clock import utc_now
from core.errors import BadCodebook, Conflict, NotFound
from core.json_records import from_object, to_object


class _Held(local):
    """The last number and its record, of a thread within `held`."""

    state: tuple[int, ActiveRecord] | None = None


class BucketPointer(Pointer):
    """The active alias in the log `active` of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._log, self._url = Log(bucket, "active"), bucket.url
        self._held = _Held()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the calling thread see one state, the newest, until the block ends."""
        self._held.state = self._newest()
        try:
            yield
        finally:
            self._held.state = None

    def read(self) -> ActiveRecord:
        """See Pointer."""
        state = self._held.state or self._newest()
        if state is None:
            raise NotFound(f"no codebook is active in {self._url}: the store is not initialised")
        return state[1]

    def start(self, version: str, by: str) -> None:
        """See Pointer."""
        if self._newest() is None:
            self._log.append(0, to_object(ActiveRecord(version, 0, None, utc_now(), by, "initialise")))

    def adopt(self, records: Sequence[ActiveRecord]) -> bool:
        """Begin with the history of another place, or end an adoption that was broken off; False where all is there.

        Raises Conflict where there are other records.
        """
        present = self._logged()
        if present != list(records[: len(present)]):
            raise Conflict(f"{self._url} holds a codebook store already")
        for number, record in enumerate(records[len(present) :], start=len(present)):
            if not self._log.append(number, to_object(record)):
                raise Outrun(f"another process has begun a store in {self._url} meanwhile")
        return len(present) < len(records)

    def check_writable(self) -> None:
        """See Pointer: whoever may write an object may write this one."""

    def _newest(self) -> tuple[int, ActiveRecord] | None:
        try:
            last = self._log.last()
            return None if last is None else (last[0], from_object(ActiveRecord, last[1]))
        except ValueError as error:
            detail = f"the last record in {self._url}/active is damaged: {error}; restore it from a backup"
            raise BadCodebook("active", "active", detail) from None

    def _logged(self) -> list[ActiveRecord]:
        try:
            return [from_object(ActiveRecord, record) for record in self._log.all()]
        except ValueError as error:
            detail = f"a record in {self._url}/active is damaged: {error}; name the version to go back to"
            raise BadCodebook("active", "audit", detail) from None

    def _highest(self) -> int:
        return self.read().epoch

    def _commit(self, old: ActiveRecord, new: ActiveRecord) -> None:
        state = self._held.state or self._newest()
        if state is None or state[1] != old or not self._log.append(state[0] + 1, to_object(new)):
            raise Outrun("the active codebook has changed meanwhile; try again")
        if self._held.state is not None:
            self._held.state = state[0] + 1, new
