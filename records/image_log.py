"""Image log: tokens, prompt and verdict of recent images, within the operator's limits on number and age.

It lets users flag an image afterwards. Knows rows in a file. Knows nothing of harm, pixels or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from sqlite3 import Connection
from typing import Protocol

import numpy
import torch
from torch import Tensor

from core.database import Database
from core.errors import NotFound

_IMAGES = """
CREATE TABLE IF NOT EXISTS images (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, drawn REAL NOT NULL, prompt TEXT NOT NULL,
  version TEXT NOT NULL, seed INTEGER NOT NULL, unsafe INTEGER, category TEXT, tokens BLOB NOT NULL);
"""
_BY_AGE = "CREATE INDEX IF NOT EXISTS images_by_age ON images (drawn);"
_SCHEMA = f"""
{_IMAGES} {_BY_AGE}
CREATE TABLE IF NOT EXISTS forgotten (version TEXT PRIMARY KEY, images INTEGER NOT NULL);
"""
HOUR_S = 3600.0


@dataclass(frozen=True, eq=False)
class KeptImage:
    """One image. tokens: [N] int64; unsafe, category: the model's own verdict, both None without one."""

    id: str
    prompt: str
    version: str
    seed: int
    unsafe: bool | None
    category: str | None
    tokens: Tensor


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on the images of a version, oldest first; `forgotten` older ones have been deleted with their images.

    unjudged: its images in the log without a verdict.
    """

    forgotten: int
    unsafe: list[bool]
    unjudged: int = 0


class ImageLog(Protocol):
    """The log of a server; thread-safe."""

    def keep(self, images: Sequence[KeptImage]) -> None:
        """Log images."""

    def forget(self) -> None:
        """Delete images beyond the limits."""

    def get(self, id: str) -> KeptImage:
        """Return an image. Raises NotFound if it is unknown or deleted."""

    def verdicts(self, version: str) -> Verdicts:
        """Return the verdicts on the images of a version, including expired images that are not deleted yet."""


class ImageMemory:
    """The last `most` images of the last `hours`, in the SQLite file `path`; most = 0 disables the log."""

    def __init__(self, path: Path, most: int, hours: float) -> None:
        self._database = Database(path, _SCHEMA, expendable=True, upgrade=_allow_unjudged)
        self._most, self._hours = most, hours

    @property
    def is_on(self) -> bool:
        """Whether images are logged at all."""
        return self._most > 0

    def keep(self, images: Sequence[KeptImage]) -> None:
        """Log images, replacing older ones of the same id, and delete those beyond the limits."""
        if not self.is_on:
            return
        rows = [(i.id, time.time(), i.prompt, i.version, i.seed, i.unsafe, i.category, pack(i.tokens)) for i in images]
        names = "id, drawn, prompt, version, seed, unsafe, category, tokens"
        with self._database.changing() as db:
            db.executemany(f"INSERT OR REPLACE INTO images ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._forget(db)

    def forget(self) -> None:
        """Delete images beyond the limits; `keep` does so too, but there may be no next image."""
        if self._database.is_there:
            with self._database.changing() as db:
                self._forget(db)
            self._database.write_back()

    def get(self, id: str) -> KeptImage:
        """Return an image. Raises NotFound if it is unknown or deleted."""
        names = ", ".join(field.name for field in fields(KeptImage))
        with self._database.reading() as db:
            arguments = (id, self._oldest())
            row = db.execute(f"SELECT {names} FROM images WHERE id = ? AND drawn >= ?", arguments).fetchone()
        if row is None:
            limit = f"the last {self._most} of {self._hours:g} hours" if self._most else "none"
            raise NotFound(f"no image {id!r} is remembered; kept are {limit}")
        unsafe = None if row["unsafe"] is None else bool(row["unsafe"])
        return KeptImage(**{**dict(row), "unsafe": unsafe, "tokens": unpack(row["tokens"])})

    def verdicts(self, version: str) -> Verdicts:
        """Return the verdicts on the images of a version, including expired images that are not deleted yet."""
        if not self._database.is_there:
            return Verdicts(0, [])
        with self._database.reading() as db:
            db.execute("BEGIN")  # one snapshot for both reads
            count = db.execute("SELECT images FROM forgotten WHERE version = ?", (version,)).fetchone()
            rows = db.execute("SELECT unsafe FROM images WHERE version = ? ORDER BY number", (version,)).fetchall()
        unsafe = [bool(row["unsafe"]) for row in rows if row["unsafe"] is not None]
        return Verdicts(count["images"] if count else 0, unsafe, len(rows) - len(unsafe))

    def _forget(self, db: Connection) -> None:
        """Delete images beyond the limits, and count their verdicts by version."""
        gone = "drawn < ? OR number <= (SELECT max(number) FROM images) - ?"
        which = (self._oldest(), self._most)
        counted = f"SELECT version, count(unsafe) FROM images WHERE {gone} GROUP BY version"
        more = "ON CONFLICT (version) DO UPDATE SET images = images + excluded.images"
        db.execute(f"INSERT INTO forgotten {counted} {more}", which)
        db.execute(f"DELETE FROM images WHERE {gone}", which)

    def _oldest(self) -> float:
        return time.time() - self._hours * HOUR_S


def _allow_unjudged(db: Connection) -> None:
    """Rebuild the table of older code, in which every image has a verdict. SQLite cannot drop NOT NULL otherwise."""
    if not _needs_verdicts(db):
        return
    db.execute("BEGIN IMMEDIATE")
    if _needs_verdicts(db):  # nobody was first
        db.execute("ALTER TABLE images RENAME TO judged_images")
        db.execute("DROP INDEX images_by_age")
        db.execute(_IMAGES)
        db.execute(_BY_AGE)
        names = "number, id, drawn, prompt, version, seed, unsafe, category, tokens"
        db.execute(f"INSERT INTO images ({names}) SELECT {names} FROM judged_images")
        db.execute("DROP TABLE judged_images")
    db.commit()


def _needs_verdicts(db: Connection) -> bool:
    column = db.execute("SELECT \"notnull\" FROM pragma_table_info('images') WHERE name = 'unsafe'").fetchone()
    return bool(column["notnull"])


def pack(tokens: Tensor) -> bytes:
    """Return tokens [N] int64 as bytes."""
    packed: bytes = tokens.to(torch.int32).numpy().astype("<i4").tobytes()
    return packed


def unpack(data: bytes) -> Tensor:
    """Return the tokens [N] int64 that `pack` wrote."""
    return torch.from_numpy(numpy.frombuffer(data, "<i4").astype("i8"))
