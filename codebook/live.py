"""The one mutable cell of a server: which codebooks are in memory, and which of them is active.

Knows the store and threads. Knows nothing of models, requests or how the hint to look again arrives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from codebook.errors import BadInput, Conflict, SafeCBError, Unavailable
from codebook.store import ActiveRecord, CodebookStore
from codebook.value import Codebook

ACTIVE = "active"


@dataclass
class _Slot:
    codebook: Codebook
    leases: int = 0


class LiveCodebooks:
    """At most `slots` resident versions, each loaded once and never changed; thread-safe.

    A version under lease stays; so does the active one. Of the others the one least recently leased makes room.
    Nothing is resident before the first `refresh`.
    """

    def __init__(self, store: CodebookStore, slots: int = 16) -> None:
        if slots < 2:
            raise BadInput("slots", slots, "at least 2: the active version and the next")
        self._store, self._capacity = store, slots
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # least recently leased first
        self._active: ActiveRecord | None = None
        self._last_error: str | None = None
        self._lock = Lock()  # guards the four fields above; never held while reading the disk
        self._loading = Lock()  # one load at a time; taken before _lock, never after

    @property
    def active(self) -> ActiveRecord:
        """The record this server follows. Raises Unavailable while it has none."""
        with self._lock:
            return self._followed()

    @property
    def last_error(self) -> str | None:
        """Why the last `refresh` kept the old version; None where it did not have to."""
        with self._lock:
            return self._last_error

    def resident(self) -> list[str]:
        """Return the names of the versions in memory, least recently leased first."""
        with self._lock:
            return list(self._slots)

    def refresh(self) -> bool:
        """Follow the store's active record and return whether it moved. Reads the disk; never raises for a bad store.

        The new version is loaded and checked first, then becomes active in one step; leases of the old one go on.
        Where it is refused, where the store shows an older epoch or where all slots are leased, the old one stays and
        `last_error` says why.
        """
        with self._loading:
            try:
                moved = self._follow(self._store.active())
                error = None
            except (SafeCBError, OSError) as reason:
                moved, error = False, str(reason)
        with self._lock:
            self._last_error = error
        return moved

    @contextmanager
    def lease(self, version: str = ACTIVE) -> Iterator[Codebook]:
        """Give a codebook that stays resident until the block ends: the active one, or a version by name.

        The active one is decided once, on entry. A version that is not resident is read from the disk first. Raises
        NotFound, BadCodebook as CodebookStore.load, and Unavailable where all slots are leased or none is active.
        """
        slot = self._take(version)
        try:
            yield slot.codebook
        finally:
            with self._lock:
                slot.leases -= 1

    def _take(self, version: str) -> _Slot:
        if (slot := self._take_resident(version)) is not None:
            return slot
        with self._loading:
            # Another thread may have loaded it while this one waited.
            if (slot := self._take_resident(version)) is not None:
                return slot
            codebook = self._store.load(version)
            with self._lock:
                slot = self._fill(codebook)
                slot.leases += 1
                return slot

    def _take_resident(self, version: str) -> _Slot | None:
        with self._lock:
            name = self._followed().version if version == ACTIVE else version
            slot = self._slots.get(name)
            if slot is not None:
                slot.leases += 1
                self._slots.move_to_end(name)
            return slot

    def _follow(self, record: ActiveRecord) -> bool:
        """Make `record` the one to follow, if it is newer; the caller holds `_loading`, so only it changes slots."""
        with self._lock:
            current, is_resident = self._active, record.version in self._slots
        if record == current:
            return False
        if current is not None and record.epoch <= current.epoch:
            raise Conflict(
                f"the store went back to epoch {record.epoch} ({record.version}); this server stays with epoch "
                f"{current.epoch} ({current.version})"
            )
        codebook = None if is_resident else self._store.load(record.version)
        with self._lock:
            if codebook is not None:
                self._fill(codebook)
            self._active = record
        return True

    def _followed(self) -> ActiveRecord:
        if self._active is None:
            raise Unavailable("no codebook is active on this server yet")
        return self._active

    def _fill(self, codebook: Codebook) -> _Slot:
        """Put `codebook` into a free slot, evicting if there is none; the caller holds both locks."""
        if len(self._slots) >= self._capacity:
            active = self._active.version if self._active else None
            idle = (name for name, slot in self._slots.items() if slot.leases == 0 and name != active)
            if (victim := next(idle, None)) is None:
                raise Unavailable(f"all {self._capacity} codebook slots are in use")
            del self._slots[victim]
        slot = self._slots[codebook.version] = _Slot(codebook)
        return slot
