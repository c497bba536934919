"""Live codebooks: the versions in memory and the active one; the state of a server that an activation changes.

Knows the store and threads. Knows nothing of models, requests or hints.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from codebook.store import ActiveRecord, CodebookStore, Moved, codebook_hash
from codebook.value import Codebook
from core.errors import BadInput, Conflict, NoBucket, NotFound, SafeCBError, Unavailable

ACTIVE = "active"


@dataclass
class _Slot:
    codebook: Codebook
    leases: int = 0


@dataclass(frozen=True)
class _Followed:
    """An active record, and the slots of its version and of those that share its traffic, by name."""

    record: ActiveRecord
    slots: Mapping[str, _Slot]

    @property
    def active(self) -> _Slot:
        return self.slots[self.record.version]


class LiveCodebooks:
    """An LRU cache of at most `slots` resident versions, each loaded once and immutable; thread-safe.

    The key of a version is its name and content hash: a folder with other content is another version. Leased versions
    and the active one are never evicted; of the others the least recently leased is. Nothing is resident before the
    first `start` or `refresh`.
    """

    def __init__(
        self,
        store: CodebookStore,
        slots: int = 16,
        stale_limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stale_limit: seconds of staleness beyond which nothing is leased. clock: seconds."""
        if slots < 2:
            raise BadInput("slots", slots, "at least 2: the active version and the next")
        self._store, self._capacity = store, slots
        self._stale_limit, self._clock = stale_limit, clock
        self._followed_at = clock()  # when the store was last followed without an error
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()  # least recently leased first
        self._active: _Followed | None = None
        self._revoked: tuple[int, frozenset[str]] = -1, frozenset()  # as of an epoch
        self._last_error: str | None = None
        self._coming: dict[str, _Slot] = {}  # of the record that is being followed; guarded by `_loading`
        self._lock = Lock()  # guards the five fields above; never held while reading the disk
        self._loading = Lock()  # one load at a time; taken before _lock, never after

    @property
    def active(self) -> ActiveRecord:
        """The active record of this server. Raises Unavailable while it has none."""
        return self.following()[0]

    def following(self) -> tuple[ActiveRecord, str]:
        """Return the active record of this server and the content hash of its codebook. Raises as `active`."""
        with self._lock:
            followed = self._followed()
        return followed.record, codebook_hash(followed.active.codebook)

    @property
    def last_error(self) -> str | None:
        """Reason why the last `refresh` kept the old version; None if it did not."""
        with self._lock:
            return self._last_error

    @property
    def stale_s(self) -> float:
        """Seconds since this server last knew, and could draw under, what is active in the store."""
        return max(0.0, self._clock() - self._followed_at)

    def check_fresh(self) -> None:
        """Raise Unavailable if nothing may be drawn: the active version here is revoked, or stale beyond the limit."""
        with self._lock:
            if self._active is not None and (version := self._active.record.version) in self._revoked[1]:
                raise Unavailable(f"codebook version {version} is revoked, and no other can be drawn here yet")
        if self._stale_limit is not None and (stale := self.stale_s) > self._stale_limit:
            reason = self.last_error or "it does not answer"
            raise Unavailable(
                f"the store was last followed {stale:.0f} s ago, and {self._stale_limit:g} are allowed: {reason}", 2.0
            )

    def resident(self) -> list[str]:
        """Return the names of the versions in memory, least recently leased first."""
        with self._lock:
            return [version for version, _ in self._slots]

    def start(self) -> None:
        """Follow the store for the first time; if its version is refused, start on the one active before it.

        That is the nearest target of a rollback that loads. The active alias does not change, `refresh` goes on
        trying, and `last_error` has the reason. Raises NoBucket where the store does not answer, and Unavailable,
        naming all refused versions, if none loads.
        """
        if self.refresh() or self._current() is not None:
            return
        refused = [str(self.last_error)]
        try:
            for record in self._store.earlier():
                if (error := self._try(record)) is None:
                    return
                refused.append(error)
        except NoBucket:
            raise
        except SafeCBError as error:  # the earlier versions are unknown
            refused.append(str(error))
        reasons = "; ".join(dict.fromkeys(refused))
        raise Unavailable(
            f"no codebook can be served: {reasons}; restore these from a backup or, to start from the model's own "
            f"codebook v0, run: {self._store.place.remedy}"
        )

    def refresh(self) -> bool:
        """Follow the store's active record and return whether it changed. Reads the disk; never raises for a bad store.

        The new version is loaded and checked first, then becomes active atomically; leases of the old one stay valid.
        If it is refused, if the store has an older epoch or if all slots are leased, the old one stays active and
        `last_error` has the reason.
        """
        with self._loading:
            try:
                moved = self._follow(self._store.active())
                error = None
            except (SafeCBError, OSError) as reason:
                moved, error = False, str(reason)
        with self._lock:
            self._last_error = error
            if error is None:
                self._followed_at = self._clock()
        return moved

    def activate(self, version: str, *, by: str, expected_epoch: int | None = None) -> Moved:
        """Activate a version in the store and here. Raises as CodebookStore.activate, and as `_confirm`."""
        return self.move(
            lambda store, here: store.activate(version, by=by, expected_epoch=expected_epoch, followed=here)
        )

    def rollback(self, *, by: str, to: str | None = None, expected_epoch: int | None = None) -> Moved:
        """Roll back in the store and here. Raises as CodebookStore.rollback, and as `_confirm`."""
        return self.move(lambda store, here: store.rollback(by=by, to=to, expected_epoch=expected_epoch, followed=here))

    def share(self, traffic: Mapping[str, float], *, by: str, expected_epoch: int | None = None) -> Moved:
        """Share the traffic in the store and here. Raises as CodebookStore.share, and as `_confirm`."""
        return self.move(lambda store, here: store.share(traffic, by=by, expected_epoch=expected_epoch, followed=here))

    def move(self, move: Callable[[CodebookStore, ActiveRecord | None], Moved]) -> Moved:
        """Make a move, given the store and the active record here. Raises as the move, and as `_confirm`."""
        return self._confirm(move(self._store, self._current()))

    def revoke(self, version: str, *, by: str) -> Moved:
        """Revoke a version in the store and here. Raises as CodebookStore.revoke, and as `_confirm`."""
        return self.move(lambda store, here: store.revoke(version, by=by, followed=here))

    def restore(self, version: str, *, by: str) -> Moved:
        """Restore a version in the store and here. Raises as CodebookStore.restore, and as `_confirm`."""
        return self.move(lambda store, here: store.restore(version, by=by, followed=here))

    @contextmanager
    def lease(self, version: str = ACTIVE, unit: str = "", is_drawn: bool = False) -> Iterator[Codebook]:
        """Give a codebook that stays resident until the block ends: the active one, or a version by name.

        unit: of traffic, such as a caller and a prompt; where versions share it, it decides which is the active one.
        is_drawn: for an image that was drawn under the version before; it may be revoked since.
        The active one is resolved once, on entry, without reading the disk. A version by name is read from the store
        unless it is resident. Raises NotFound, also for a revoked one, BadCodebook as CodebookStore.load, and
        Unavailable if all slots are leased or none is active, and as `check_fresh`.
        """
        self.check_fresh()
        slot = self._take_active(unit) if version == ACTIVE else self._take(version, is_drawn)
        try:
            yield slot.codebook
        finally:
            with self._lock:
                slot.leases -= 1

    def _take_active(self, unit: str) -> _Slot:
        with self._lock:
            followed = self._followed()
            version = followed.record.drawn_for(unit) if unit else followed.record.version
            if version in self._revoked[1]:  # where the record that revokes it cannot be followed
                raise Unavailable(f"codebook version {version} is revoked, and no other can be drawn here yet")
            return self._lease(followed.slots[version])

    def _take(self, version: str, is_drawn: bool) -> _Slot:
        with self._lock:
            if version in self._revoked[1] and not is_drawn:
                raise NotFound(f"codebook version {version} is revoked")
        key = self._key(version)
        with self._lock:
            if key in self._slots:
                return self._lease(self._slots[key])
        with self._loading:
            slot = self._loaded(version)
            with self._lock:
                return self._lease(slot)

    def _lease(self, slot: _Slot) -> _Slot:
        """Count a lease; the caller holds `_lock`."""
        slot.leases += 1
        self._slots.move_to_end((slot.codebook.version, codebook_hash(slot.codebook)))
        return slot

    def _key(self, version: str) -> tuple[str, str]:
        return version, self._store.manifest(version).content_hash

    def _loaded(self, version: str) -> _Slot:
        """Return the slot of a version as in the store, loading it if needed; the caller holds `_loading`."""
        key = self._key(version)
        with self._lock:
            if key in self._slots:
                return self._slots[key]
        codebook = self._store.load(version)
        with self._lock:
            return self._fill(codebook)

    def _follow(self, record: ActiveRecord) -> bool:
        """Make `record` the active one if it is newer; the caller holds `_loading`, so only it changes slots."""
        current = self._current()
        if record == current:
            return False
        if current is not None and record.epoch <= current.epoch:
            raise Conflict(
                f"the store went back to epoch {record.epoch} ({record.version}); this server stays with epoch "
                f"{current.epoch} ({current.version})"
            )
        with self._lock:  # at once, even if a version of the record is refused
            self._revoked = max(self._revoked, (record.epoch, frozenset(record.revoked)), key=lambda known: known[0])
        self._coming = {}
        for version in (record.version, *record.traffic):
            self._coming[version] = self._loaded(version)
        with self._lock:
            self._active = _Followed(record, self._coming)
        return True

    def _try(self, record: ActiveRecord) -> str | None:
        """Follow `record`; return the reason if it is refused."""
        with self._loading:
            try:
                self._follow(record)
                return None
            except (SafeCBError, OSError) as reason:
                return str(reason)

    def _confirm(self, moved: Moved) -> Moved:
        """Follow an activation that was made here and return it. Raises Conflict if this server cannot."""
        self.refresh()
        here, new = self._current(), moved[1]
        if here is None or (here != new and here.epoch <= new.epoch):
            version = here.version if here else "no codebook"
            raise Conflict(
                f"the store moved to {new.version}, epoch {new.epoch}, and this server stays with {version} for now: "
                f"{self.last_error}"
            )
        return moved

    def _current(self) -> ActiveRecord | None:
        with self._lock:
            return self._active.record if self._active else None

    def _followed(self) -> _Followed:
        if self._active is None:
            raise Unavailable("no codebook is active on this server yet")
        return self._active

    def _fill(self, codebook: Codebook) -> _Slot:
        """Return the slot of `codebook`, evicting another version if all are full; the caller holds both locks."""
        key = (codebook.version, codebook_hash(codebook))
        if key in self._slots:  # its folder changed in between
            return self._slots[key]
        if len(self._slots) >= self._capacity:
            drawing = {} if self._active is None else self._active.slots
            needed = {id(slot) for slot in (*drawing.values(), *self._coming.values())}
            idle = (other for other, slot in self._slots.items() if slot.leases == 0 and id(slot) not in needed)
            if (victim := next(idle, None)) is None:
                raise Unavailable(f"all {self._capacity} codebook slots are in use")
            del self._slots[victim]
        slot = self._slots[key] = _Slot(codebook)
        return slot
