"""An SQLite file that threads and processes share: a connection a use, changes all or none.

Knows SQLite. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from weakref import finalize

from core.errors import NoStorage, Unavailable
from core.storage import failure, naming, probe

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # how long a writer waits for another
_DAMAGE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
# SQLite's words for "the file cannot be read or written", without the reason.
_VAGUE = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_COLUMNS = """
SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'
"""


class Database:
    """The file `path`, made with its folder and `schema` (CREATE ... IF NOT EXISTS) at the first use.

    Each use raises NoRoom and NoAccess, naming the file, where the disk is full or does not let us; the next one starts
    afresh.

    A file that is damaged, or another program's, is left alone: its use raises Unavailable, naming it. Where it is
    `expendable` it is set aside at the first use and begun anew.
    """

    def __init__(self, path: Path, schema: str, *, expendable: bool = False) -> None:
        self._path, self._schema, self._expendable = path, schema, expendable
        self._lock, self._is_held = threading.Lock(), False

    @property
    def is_there(self) -> bool:
        """Whether the file was made."""
        return self._path.exists()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock from the start; what it did counts unless the block raises."""
        with self.reading() as connection:  # one that is left open is rolled back
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one look."""
        with self._naming(), closing(self._open()) as connection:
            yield connection

    def write_back(self) -> None:
        """Write the log back into the file and empty it, so that what was deleted stands in neither."""
        with self.reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self) -> sqlite3.Connection:
        with self._lock:
            if not self._is_held:
                # Whoever closes a file last writes its log back and waits for the disk: 18 ms, where a row takes 0.3.
                # One connection that stays open as long as this object does spares every use that; which thread ends
                # it is not known.
                finalize(self, self._first().close)
                self._is_held = True
        return self._connect()

    def _first(self) -> sqlite3.Connection:
        if (damage := self._damage()) is not None:
            if not self._expendable:
                raise self._refusal(damage)
            log.error("%s cannot be used: %s; it is set aside as %s", self._path, damage, self._set_aside())
        return self._connect()

    def _damage(self) -> str | None:
        """What is wrong with the file as a whole; None where nothing is, or it is not there yet."""
        if not self.is_there:
            return None
        if not self._path.is_file():
            return "it is not a file"
        read_only = f"{self._path.absolute().as_uri()}?mode=ro"  # what is not ours stays as it is
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
        for suffix in ("", "-wal", "-shm"):  # the log is of this file: together they may still be read
            if (part := Path(f"{self._path}{suffix}")).exists():
                part.rename(f"{beside}{suffix}")
        return beside

    def _refusal(self, damage: str) -> Unavailable:
        detail = f"{self._path} cannot be used: {damage}; restore it from a backup or move it away to begin anew"
        return Unavailable(detail, retry_after=60)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, PATIENCE_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        # Readers do not wait for writers, a power cut may cost the last rows but not the file, and what is deleted is
        # overwritten: rows hold what users wrote.
        settings = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON;"
        connection.executescript(f"{settings} {self._schema}")
        return connection

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with naming(self._path):
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the code tells kinds of one kind apart
            if (reason := self._reason(code)) is not None:
                raise reason from error
            if code in _DAMAGE | {sqlite3.SQLITE_CANTOPEN}:
                raise self._refusal(str(error)) from None
            raise

    def _reason(self, code: int) -> NoStorage | None:
        """Say what is behind one of SQLite's codes; None where it is not the disk."""
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
