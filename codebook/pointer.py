"""Active alias of a store and the log of its activations: the files ACTIVE and audit.jsonl.

An activation takes effect once ACTIVE is replaced; its line in the log follows. A crash between the two leaves the log
one line short, and the next activation writes the missing line first, since ACTIVE has all of it; an activation that
cannot do so is refused, so that at most one line is missing.

Activating a safer version must work on a full disk: space for the next ACTIVE and some lines of the log is reserved.

Knows names of versions. Knows nothing of their content; the caller has checked them, and holds the lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from codebook.numbers import number_of
from core.atomic import append_line, beside, hold_room, read_file, read_lines, replace_file
from core.clock import utc_now
from core.errors import BadCodebook, Conflict, NoStorage, NotFound
from core.json_records import decode, encode
from core.storage import probe

Move = Literal["initialise", "activate", "rollback", "traffic", "revoke", "restore"]
RECORD_BYTES = 4096  # upper bound of an ActiveRecord
LINES_BYTES = 1 << 14  # for some hundred activations


@dataclass(frozen=True)
class ActiveRecord:
    """One state of the active alias.

    epoch: 0 for the first, higher with every activation, rollbacks included.
    previous: the version that was active before; None for the first.
    moved_at: UTC, ISO 8601. moved_by: the operator or job. move: the kind of activation.
    traffic: the share in (0, 1) of each version that draws for callers who name none, the active one included, with
        the sum 1; empty where the active one draws for all. split: the epoch at which these versions began to share.
    revoked: versions under which nothing is drawn any more. reason: of a move that no person made.
    """

    version: str
    epoch: int
    previous: str | None
    moved_at: str
    moved_by: str
    move: Move
    traffic: dict[str, float] = field(default_factory=dict)
    split: int = 0
    revoked: list[str] = field(default_factory=list)
    reason: str = ""

    def drawn_for(self, unit: str) -> str:
        """Return the version that draws for a unit, such as a caller and a prompt: the same one while the split lasts.

        A hash of `split` and the unit, in [0, 1), falls into the share of a version; the active one comes last, so that
        units stay with one other version as its share grows.
        """
        digest = hashlib.blake2b(
            unit.encode("utf-8", "surrogatepass"), digest_size=8, salt=self.split.to_bytes(16, "big")
        )
        place = int.from_bytes(digest.digest(), "big") / 2**64
        for version in sorted(self.traffic.keys() - {self.version}):
            if place < self.traffic[version]:
                return version
            place -= self.traffic[version]
        return self.version


Moved: TypeAlias = tuple[ActiveRecord, ActiveRecord]  # the old record and the new


class Pointer:
    """The active alias of a store and its audit log. Only `read` may be called without the store's lock."""

    def __init__(self, root: Path) -> None:
        self._active, self._audit_log = root / "ACTIVE", root / "audit.jsonl"

    def read(self) -> ActiveRecord:
        """Return the record. Raises NotFound before the first activation, BadCodebook (active) if damaged."""
        try:
            return decode(ActiveRecord, read_file(self._active))
        except FileNotFoundError:
            raise NotFound(f"no codebook is active in {self._active.parent}: the store is not initialised") from None
        except (OSError, ValueError) as error:
            detail = f"{self._active} is damaged: {error}; move it away and start again: it comes back from audit.jsonl"
            raise BadCodebook("active", "active", detail) from None

    def start(self, version: str, by: str) -> None:
        """Activate `version` unless one is active; if ACTIVE was lost, restore it from the log. Raises as `read`."""
        try:
            self.read()
        except NotFound:
            moves = self._logged()
            first = ActiveRecord(version, 0, None, utc_now(), by, "initialise")
            self._replace(moves[-1] if moves else first)

    def expect(self, epoch: int | None) -> None:
        """Raise Conflict if `epoch` is not None and not the current one; otherwise as `read`."""
        record = self.read()
        if epoch is not None and epoch != record.epoch:
            raise Conflict(f"the active codebook has changed: epoch {record.epoch} ({record.version}), not {epoch}")

    def move(
        self,
        version: str,
        by: str,
        move: Move,
        followed: ActiveRecord | None = None,
        traffic: Mapping[str, float] = MappingProxyType({}),
        revoked: Sequence[str] | None = None,
        reason: str = "",
    ) -> Moved:
        """Activate `version` and return the old record and the new; they are the same if nothing changes.

        traffic, revoked: as in ActiveRecord; revoked is None where it does not change. followed: the active record of
        the caller's server. If the store is behind it, such as an older backup, every call is an activation, with an
        epoch above both, so that the server follows.
        """
        old, ahead = self.read(), -1 if followed is None else followed.epoch
        is_behind = old != followed and old.epoch <= ahead
        gone = old.revoked if revoked is None else sorted(revoked, key=number_of)
        if (old.version, old.traffic, old.revoked) == (version, dict(traffic), gone) and not is_behind:
            return old, old
        epoch = max(old.epoch, ahead, self._last_epoch()) + 1
        split = 0 if not traffic else old.split if old.traffic.keys() == traffic.keys() else epoch
        new = ActiveRecord(version, epoch, old.version, utc_now(), by, move, dict(traffic), split, gone, reason)
        self._log(old)  # in case the process that wrote it died before it could
        self._replace(new)
        return old, new

    def audit(self) -> list[ActiveRecord]:
        """Return every activation, oldest first. Raises BadCodebook (audit) if a line of the log is damaged."""
        moves = self._logged()
        current = self.read()
        return moves if moves and moves[-1].epoch >= current.epoch else [*moves, current]

    def check_writable(self) -> None:
        """Raise NoRoom or NoAccess if a file of the alias cannot be written; reserve space for the next activations."""
        self._hold_room()
        probe(self._active)
        probe(self._audit_log)

    def before(self) -> str:
        """Return the target of a rollback. Raises Conflict if there is none, otherwise as `audit`."""
        if not (earlier := self.earlier()):
            raise Conflict(f"nothing to roll back to: no version was active before {self.read().version}")
        return earlier[0].version

    def earlier(self) -> list[ActiveRecord]:
        """Return the targets of successive rollbacks, nearest first, without revoked ones. Raises as `audit`.

        Activations nest like brackets: an activation opens, a rollback closes. So two rollbacks in a row go back two
        versions, and never forward again to the version just left.
        """
        history: list[ActiveRecord] = []
        for record in self.audit():
            if record.move in ("rollback", "revoke") and any(past.version == record.version for past in history):
                while history[-1].version != record.version:
                    history.pop()
            elif not history or record.version != history[-1].version:
                history.append(record)
        revoked = self.read().revoked
        return [record for record in history[-2::-1] if record.version not in revoked]

    def mentioned(self) -> set[str]:
        """Return the names of all versions that were ever active, as far as the records are readable."""
        lines = self._lines()
        with suppress(OSError):
            lines.append(self._active.read_bytes())
        names = set()
        for line in lines:
            with suppress(ValueError):
                names.add(decode(ActiveRecord, line).version)
        return names

    def _replace(self, record: ActiveRecord) -> None:
        replace_file(self._active, encode(record))
        self._hold_room()
        with suppress(NoStorage):  # the activation is done; the next one writes its line, or is refused
            self._log(record)

    def _hold_room(self) -> None:
        hold_room(beside(self._active), RECORD_BYTES)
        hold_room(self._audit_log, LINES_BYTES)

    def _logged(self) -> list[ActiveRecord]:
        moves = []
        for number, line in enumerate(self._lines(), start=1):
            try:
                moves.append(decode(ActiveRecord, line))
            except ValueError as error:
                detail = (
                    f"line {number} of audit.jsonl is damaged: {error}; name the version to go back to or move it away"
                )
                raise BadCodebook("active", "audit", detail) from None
        return moves

    def _lines(self) -> list[bytes]:
        try:
            return read_lines(self._audit_log)
        except OSError as error:
            detail = f"{self._audit_log} cannot be read: {error.strerror}; move it away"
            raise BadCodebook("active", "audit", detail) from None

    def _log(self, record: ActiveRecord) -> None:
        """Append `record` unless it is in the log."""
        if self._last_epoch() < record.epoch:
            append_line(self._audit_log, encode(record, indent=None))

    def _last_epoch(self) -> int:
        """Return the epoch of the log's last line; -1 if it has none. A damaged log must not stop an activation."""
        with suppress(ValueError, IndexError):
            return decode(ActiveRecord, self._lines()[-1]).epoch
        return -1
