"""Active alias in a folder, and the log of its activations: the files ACTIVE and audit.jsonl.

An activation takes effect once ACTIVE is replaced; its line in the log follows. A crash between the two leaves the log
one line short, and the next activation writes the missing line first, since ACTIVE has all of it; an activation that
cannot do so is refused, so that at most one line is missing.

Activating a safer version must work on a full disk: space for the next ACTIVE and some lines of the log is reserved.
The space of the ACTIVE before is free for a moment, and another writer may be first to take it; so there are spares.
The old file cannot be written again: a reader may still hold it.

Knows two files. The caller holds the lock.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from codebook.pointer import ActiveRecord, Pointer
from core.atomic import append_line, beside, hold_room, holds_room, read_file, read_lines, replace_file
from core.clock import utc_now
from core.errors import BadCodebook, NoStorage, NotFound
from core.json_records import decode, encode
from core.storage import probe

RECORD_BYTES = 4096  # upper bound of an ActiveRecord
LINES_BYTES = 1 << 14  # for some hundred activations
SPARES = 4  # files that hold the space of a record: the disk may be full and busy for so many activations


class FilePointer(Pointer):
    """The active alias in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._active, self._audit_log = root / "ACTIVE", root / "audit.jsonl"
        self._spares = [root / f".ACTIVE.room-{number}" for number in range(SPARES)]

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

    def check_writable(self) -> None:
        """Raise NoRoom or NoAccess if a file of the alias cannot be written; reserve space for the next activations."""
        self._hold_room()
        probe(self._active)
        probe(self._audit_log)

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

    def _commit(self, old: ActiveRecord, new: ActiveRecord) -> None:
        """See Pointer."""
        self._log(old)  # in case the process that wrote it died before it could
        self._replace(new)

    def _replace(self, record: ActiveRecord) -> None:
        self._take_spare()
        replace_file(self._active, encode(record))
        self._hold_room()
        with suppress(NoStorage):  # the activation is done; the next one writes its line, or is refused
            self._log(record)

    def _take_spare(self) -> None:
        """Let a spare be the next ACTIVE, unless that has space of its own."""
        new = beside(self._active)
        spare = None if holds_room(new) else next(filter(holds_room, self._spares), None)
        if spare is not None:
            with suppress(OSError):  # what the disk refuses will be said of ACTIVE
                spare.replace(new)

    def _hold_room(self) -> None:
        for path in (beside(self._active), *self._spares):
            if not holds_room(path):
                hold_room(path, RECORD_BYTES)
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
        if self._highest() < record.epoch:
            append_line(self._audit_log, encode(record, indent=None))

    def _highest(self) -> int:
        """See Pointer: the epoch of the last line."""
        with suppress(ValueError, IndexError):
            return decode(ActiveRecord, self._lines()[-1]).epoch
        return -1
