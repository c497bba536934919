"""Which version is active, since when, and every move before: the files ACTIVE and audit.jsonl.

A move is real once ACTIVE is replaced; the audit line follows. A crash between the two leaves the log one line short,
and the next move writes the missing line first, since ACTIVE holds all of it.

Knows names of versions. Knows nothing of what they hold; its caller has checked them, and holds the lock.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from codebook.atomic import append_line, read_lines, replace_file
from codebook.clock import utc_now
from codebook.errors import BadCodebook, Conflict, NotFound
from codebook.records import decode, encode, to_json

Move = Literal["initialise", "activate", "rollback"]


@dataclass(frozen=True)
class ActiveRecord:
    """One position of the pointer.

    epoch: 0 for the first, one more with every move; never goes back, whatever the version does.
    previous: the version that was active before this move; None for the first.
    moved_at: UTC, ISO 8601. moved_by: who asked. move: how it came about.
    """

    version: str
    epoch: int
    previous: str | None
    moved_at: str
    moved_by: str
    move: Move


class Pointer:
    """The ACTIVE record of a store and its audit log. Only `read` may be called without the store's lock."""

    def __init__(self, root: Path) -> None:
        self._active, self._audit_log = root / "ACTIVE", root / "audit.jsonl"

    def read(self) -> ActiveRecord:
        """Return the record as it stands. Raises NotFound before the first move, BadCodebook (active) if damaged."""
        try:
            return decode(ActiveRecord, self._active.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"no codebook is active in {self._active.parent}: the store is not initialised") from None
        except (OSError, ValueError) as error:
            raise BadCodebook("active", "active", f"the file ACTIVE is damaged: {error}") from None

    def start(self, version: str, by: str) -> None:
        """Make `version` active unless one is; where ACTIVE was lost, restore it from the log. Raises as `read`."""
        try:
            self.read()
        except NotFound:
            moves = self._logged()
            first = ActiveRecord(version, 0, None, utc_now(), by, "initialise")
            self._replace(moves[-1] if moves else first)

    def expect(self, epoch: int | None) -> None:
        """Raise Conflict where `epoch` is given and is not the current one; else as `read`."""
        record = self.read()
        if epoch is not None and epoch != record.epoch:
            raise Conflict(f"the active codebook moved on: epoch {record.epoch} ({record.version}), not {epoch}")

    def move(self, version: str, by: str, move: Move) -> tuple[ActiveRecord, ActiveRecord]:
        """Make `version` active and return the old record and the new; no move where it is active already."""
        old = self.read()
        if old.version == version:
            return old, old
        new = ActiveRecord(version, old.epoch + 1, old.version, utc_now(), by, move)
        self._log(old)  # in case the process that made it died before it could
        self._replace(new)
        return old, new

    def audit(self) -> list[ActiveRecord]:
        """Return every move, oldest first. Raises BadCodebook (audit) where a line of the log is damaged."""
        moves = self._logged()
        current = self.read()
        return moves if moves and moves[-1].epoch >= current.epoch else [*moves, current]

    def before(self) -> str:
        """Return the version that a rollback goes to. Raises Conflict where there is none, else as `audit`.

        Moves nest like brackets: an activation opens, a rollback closes. So two rollbacks in a row go back two
        versions, and never forward again to the one that was just left.
        """
        history: list[str] = []
        for record in self.audit():
            if record.move == "rollback" and record.version in history:
                while history[-1] != record.version:
                    history.pop()
            else:
                history.append(record.version)
        if len(history) < 2:
            raise Conflict(f"nothing to roll back to: no version was active before {history[-1]}")
        return history[-2]

    def _replace(self, record: ActiveRecord) -> None:
        replace_file(self._active, encode(record))
        self._log(record)

    def _logged(self) -> list[ActiveRecord]:
        moves = []
        for number, line in enumerate(read_lines(self._audit_log), start=1):
            try:
                moves.append(decode(ActiveRecord, line))
            except ValueError as error:
                detail = f"line {number} of audit.jsonl is damaged: {error}; name the version to go back to"
                raise BadCodebook("active", "audit", detail) from None
        return moves

    def _log(self, record: ActiveRecord) -> None:
        """Append `record` unless the log has it. Looks at the last line only: a damaged log must not stop a move."""
        last = -1
        if lines := read_lines(self._audit_log):
            with suppress(ValueError):
                last = decode(ActiveRecord, lines[-1]).epoch
        if last < record.epoch:
            append_line(self._audit_log, to_json("audit", asdict(record)))
