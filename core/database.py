"""SQLite file shared by threads and processes: one connection per use, changes in transactions.

Knows SQLite. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from weakref import finalize

from core.errors import NoStorage, Unavailable
from core.storage import failure, is_remote, naming, probe

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # timeout of a writer that waits for another
AGAIN_S = 0.01
_DAMAGE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
# SQLite's codes for a file that cannot be read or written, without the reason.
_VAGUE = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_COLUMNS = """
SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'
"""


class Database:
    """The file `path`, created with its folder and `schema` (CREATE ... IF NOT EXISTS) at the first use.

    Each use raises NoRoom and NoAccess, naming the file, when the disk is full or not accessible; the next one tries
    again.

    upgrade: brings a file of older code up to the schema, by the first connection; it begins its own transaction.

    A file that is damaged, or another program's, is not changed: its use raises Unavailable, naming it. If it is
    `expendable` it is moved aside at the first use and created again.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        expendable: bool = False,
        upgrade: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self._path, self._schema, self._expendable, self._upgrade = path, schema, expendable, upgrade
        self._lock, self._is_held = threading.Lock(), False

    @property
    def is_there(self) -> bool:
        """Whether the file exists."""
        return self._path.exists()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that holds the write lock; commits unless the block raises."""
        with self.reading() as connection:  # one that is left open is rolled back
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection for reading."""
        with self._naming(), closing(self._open()) as connection:
            yield connection

    def write_back(self) -> None:
        """Checkpoint the WAL into the file and truncate it, so that deleted rows are in neither."""
        with self.reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self) -> sqlite3.Connection:
        with self._lock:
            if not self._is_held:
                # The last connection to close checkpoints the WAL and waits for the disk, far longer than a row takes.
                # One connection that stays open as long as this object does avoids that; any thread may close it.
                finalize(self, self._first_in_turn().close)
                self._is_held = True
        return self._connect()

    def _first_in_turn(self) -> sqlite3.Connection:
        """Return the first connection, however many processes make the file in the same moment.

        SQLite does not wait, whatever its timeout, where two of them change the journal mode of a new file.
        """
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._first()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                    raise
            time.sleep(AGAIN_S)

    def _first(self) -> sqlite3.Connection:
        if (damage := self._damage()) is not None:
            if not self._expendable:
                raise self._refusal(damage)
            log.error("%s cannot be used: %s; it is set aside as %s", self._path, damage, self._set_aside())
        connection = self._connect()
        if self._upgrade is not None:
            try:
                self._upgrade(connection)
            except BaseException:
                connection.close()  # and with it a transaction that was begun
                raise
        return connection

    def _damage(self) -> str | None:
        """Return the fault of the file as a whole; None if it is sound or does not exist yet."""
        if not self.is_there:
            return None
        if not self._path.is_file():
            return "it is not a file"
        read_only = f"{self._path.absolute().as_uri()}?mode=ro"  # another program's file is not changed
        with closing(sqlite3.connect(":memory:")) as ours, closing(sqlite3.connect(read_only, uri=True)) as db:
            try:
                if (damage := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    return str(damage)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                    raise
                return str(error)
            ours.executescript(self._schema)
            expected, present = (set(file.execute(_COLUMNS)) for file in (ours, db))
        tables = {table for table, _ in present}
        shared = {(table, column) for table, column in expected if table in tables}
        return "its tables are another program's" if present and (not shared or shared - present) else None

    def _set_aside(self) -> Path:
        beside = next(path for n in count(1) if not (path := Path(f"{self._path}.damaged-{n}")).exists())
        for suffix in ("", "-wal", "-shm"):  # the WAL belongs to this file: together they may still be readable
            if (part := Path(f"{self._path}{suffix}")).exists():
                part.rename(f"{beside}{suffix}")
        return beside

    def _refusal(self, damage: str) -> Unavailable:
        detail = f"{self._path} cannot be used: {damage}; restore it from a backup or move it away to start empty"
        return Unavailable(detail, retry_after=60)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, PATIENCE_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        # Readers do not wait for writers; a power cut may cost the last rows but not the file; deleted rows are
        # overwritten, since they hold users' texts. A WAL's index is memory that only one machine's processes share.
        journal = "DELETE" if is_remote(self._path.parent) else "WAL"
        settings = f"PRAGMA journal_mode={journal}; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON;"
        connection.executescript(f"{settings} {self._schema}")
        return connection

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with naming(self._path):
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary result code
            if (reason := self._reason(code)) is not None:
                raise reason from error
            if code in _DAMAGE | {sqlite3.SQLITE_CANTOPEN}:
                raise self._refusal(str(error)) from None
            raise

    def _reason(self, code: int) -> NoStorage | None:
        """Return the error of the disk behind one of SQLite's codes; None if it is not the disk."""
        if code == sqlite3.SQLITE_FULL:
            return failure(self._path, errno.ENOSPC)
        if code not in _VAGUE:
            return None
        try:
            probe(self._path.parent)
            probe(self._path)
        except NoStorage as stopped:
            return type(stopped)(self._path, stopped.state, stopped.remedy)
        return None if code == sqlite3.SQLITE_CANTOPEN else failure(self._path, errno.EIO)
