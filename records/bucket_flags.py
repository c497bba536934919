"""User flags in a bucket that several machines share: a log of what became of each, and its texts beside it.

    flags/000000000000   a log: added, settled, taken by a job; without what a user wrote
    flag/ID.json         prompt, note and tokens of one flag; deleted once it is settled for long enough

The rules are those of records/flags.py. Knows a log. Knows nothing of HTTP or of jobs.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from threading import RLock
from typing import Any, Literal, TypeAlias

from core.bucket.bucket import Bucket
from core.bucket.log import Log
from core.errors import Conflict, NoBucket, NotFound
from core.json_records import from_json, to_json
from core.settings import Settings
from core.text import text_key
from records.flags import OPEN, Flag, Flagged, FlagQueue, Flags, State, choose_fairly, refuse_flood
from records.image_log import HOUR_S, KeptImage, pack, unpack

READERS = 8


def open_flags(settings: Settings, patience: float = 0.0) -> FlagQueue:
    """Return the flags of the settings. patience: seconds for which a use waits for a bucket that is away."""
    if settings.bucket is None:
        return Flags(settings.home / "flags.db", settings.keep_hours)
    return BucketFlags(Bucket(settings.bucket, patience), settings.keep_hours)


@dataclass
class _Entry:
    """What the log says of a flag; key: a hash of its prompt. settled: Unix seconds, None while it is open."""

    id: str
    image_id: str
    key: str
    version: str
    category: str | None
    caller: str
    state: State
    made: float
    job: str | None = None
    settled: float | None = None


_Entries: TypeAlias = list[_Entry]  # inside BucketFlags the name `list` is a method


class BucketFlags:
    """The flags in a bucket; settled flags are deleted after `hours`. See FlagQueue for its methods."""

    def __init__(self, bucket: Bucket, hours: float) -> None:
        self._bucket, self._hours = bucket, hours
        self._log, self._lock = Log(bucket, "flags"), RLock()
        self._entries: dict[str, _Entry] = {}  # oldest first, as of `_count` records
        self._count, self._generation = 0, self._log.generation
        self._texts: dict[str, dict[str, Any]] = {}

    def add(self, image: KeptImage, category: str | None, note: str, caller: str, *, review: bool) -> Flag:
        """See FlagQueue."""
        id, key = secrets.token_hex(12), blake2b(text_key(image.prompt).encode(), digest_size=16).hexdigest()
        tokens = base64.b64encode(pack(image.tokens)).decode()
        state: State = "review" if review else "accepted"

        def change() -> tuple[str, dict[str, Any] | None]:
            opened = [entry for entry in self._entries.values() if entry.state in OPEN]
            for entry in opened:
                if (entry.key, entry.caller) == (key, caller):
                    return entry.id, None
            refuse_flood(sum(entry.caller == caller for entry in opened), len(opened))
            self._bucket.write(_texts(id), to_json("flag", {"prompt": image.prompt, "note": note, "tokens": tokens}))
            made = _Entry(id, image.id, key, image.version, category, caller, state, time.time())
            return id, {"added": vars(made)}

        made_id = ""
        try:
            made_id = self._changed(change)
        finally:
            if made_id != id:  # refused, or there was one: nothing of this one stays
                with suppress(NoBucket):
                    self._bucket.delete(_texts(id))
        return self.get(made_id)

    def forget(self) -> None:
        """See FlagQueue."""
        with self._lock:
            self._fold()
            expired = [entry.id for entry in self._entries.values() if self._is_expired(entry)]
        names = self._bucket.names("flag/")
        for id in expired:
            self._texts.pop(id, None)
            if f"{id}.json" in names:
                self._bucket.delete(_texts(id))

    def get(self, id: str) -> Flag:
        """See FlagQueue."""
        with self._lock:
            self._fold()
            entry = self._entry(id)
        return self._flag(entry)

    def list(self, state: State | None = None) -> Flagged:
        """See FlagQueue."""
        with self._lock:
            self._fold()
            entries = [entry for entry in self._live() if state in (None, entry.state)]
        return self._flags(entries[::-1])

    def settle(self, id: str, state: Literal["accepted", "rejected"], category: str | None = None) -> Flag:
        """See FlagQueue."""

        def change() -> tuple[str, dict[str, Any]]:
            if (entry := self._entry(id)).state not in OPEN:
                raise Conflict(f"flag {id} is {entry.state}")
            now = None if state in OPEN else time.time()
            return id, {"settled": {"id": id, "state": state, "category": category or entry.category, "at": now}}

        return self.get(self._changed(change))

    def take(self, job: str) -> Flagged:
        """See FlagQueue."""

        def change() -> tuple[str, dict[str, Any] | None]:
            if any(entry.job == job for entry in self._entries.values()):
                return job, None
            accepted = [entry for entry in self._live() if entry.state == "accepted"]
            used = choose_fairly(self._flags(_first_each(accepted)))
            keys = {self._entries[flag.id].key for flag in used}
            ids = [entry.id for entry in accepted if entry.key in keys]
            return job, {"taken": {"job": job, "ids": ids, "at": time.time()}} if ids else None

        self._changed(change)
        with self._lock:
            entries = [entry for entry in self._live() if entry.job == job]
        return self._flags(_first_each(entries))

    def _changed(self, change: Callable[[], tuple[str, dict[str, Any] | None]]) -> str:
        """Write what `change` makes of the present state, decided anew where another was first; return its name."""
        while True:
            with self._lock:  # what is decided and what is written are of one state
                self._fold()
                name, record = change()
                if record is None or self._log.append(self._count, record):
                    self._fold()
                    return name

    def _fold(self) -> None:
        """Follow the log."""
        with self._lock:
            self._log.last()
            if self._log.generation != self._generation:  # the bucket was put back
                self._entries, self._count, self._generation = {}, 0, self._log.generation
            for record in self._log.all(self._count - 1):
                self._apply(record)
                self._count += 1

    def _apply(self, record: dict[str, Any]) -> None:
        if (added := record.get("added")) is not None:
            self._entries[added["id"]] = _Entry(**added)
        elif (settled := record.get("settled")) is not None:
            entry = self._entries[settled["id"]]
            entry.state, entry.category, entry.settled = settled["state"], settled["category"], settled["at"]
        elif (taken := record.get("taken")) is not None:
            for id in taken["ids"]:
                entry = self._entries[id]
                entry.state, entry.job, entry.settled = "used", taken["job"], taken["at"]

    def _live(self) -> _Entries:
        return [entry for entry in self._entries.values() if not self._is_expired(entry)]

    def _is_expired(self, entry: _Entry) -> bool:
        return entry.settled is not None and entry.settled < time.time() - self._hours * HOUR_S

    def _entry(self, id: str) -> _Entry:
        entry = self._entries.get(id)
        if entry is None or self._is_expired(entry):
            raise NotFound(f"there is no flag {id!r}")
        return entry

    def _flags(self, entries: _Entries) -> Flagged:
        def read(entry: _Entry) -> Flag | None:
            with suppress(NotFound):  # its texts were deleted elsewhere
                return self._flag(entry)
            return None

        with ThreadPoolExecutor(READERS) as pool:
            return [flag for flag in pool.map(read, entries) if flag is not None]

    def _flag(self, entry: _Entry) -> Flag:
        """Return a flag with its texts. Raises NotFound where they were deleted."""
        if entry.id not in self._texts:
            if (data := self._bucket.read(_texts(entry.id))) is None:
                raise NotFound(f"there is no flag {entry.id!r}")
            self._texts[entry.id] = from_json(data)
        texts = self._texts[entry.id]
        return Flag(
            entry.id,
            entry.image_id,
            texts["prompt"],
            entry.version,
            unpack(base64.b64decode(texts["tokens"])),
            entry.category,
            texts["note"],
            entry.caller,
            entry.state,
            entry.made,
            entry.job,
        )


def _first_each(entries: _Entries) -> _Entries:
    """The first flag of each prompt."""
    first: dict[str, _Entry] = {}
    for entry in entries:
        first.setdefault(entry.key, entry)
    return list(first.values())


def _texts(id: str) -> str:
    return f"flag/{id}.json"
