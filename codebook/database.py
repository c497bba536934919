"""An SQLite file that threads and processes share: a connection a use, changes all or none.

Knows SQLite. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import finalize

PATIENCE_S = 10.0  # how long a writer waits for another


class Database:
    """The file `path`, made with its folder and `schema` (CREATE ... IF NOT EXISTS) at the first use."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path, self._schema = path, schema
        self._lock, self._is_held = threading.Lock(), False

    @property
    def is_there(self) -> bool:
        """Whether the file was made."""
        return self._path.exists()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock from the start; what it did counts unless the block raises."""
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.commit()
        finally:
            connection.close()  # an open transaction is rolled back

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one look."""
        connection = self._open()
        try:
            yield connection
        finally:
            connection.close()

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
                finalize(self, self._connect().close)
                self._is_held = True
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, PATIENCE_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        # Readers do not wait for writers, a power cut may cost the last rows but not the file, and what is deleted is
        # overwritten: rows hold what users wrote.
        settings = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON;"
        connection.executescript(f"{settings} {self._schema}")
        return connection
