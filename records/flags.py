"""User flags on unsafe images: a queue that operators review and the next improve job learns from.

No caller can steer the loop alone: a job learns from a prompt once, the open flags of a caller are limited, and a
category that the model does not know waits for review. Knows rows in a file. Knows nothing of HTTP or of jobs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from core.database import Database
from core.errors import Busy, Conflict, NotFound
from core.text import text_key
from records.image_log import HOUR_S, KeptImage, pack, unpack

State = Literal["accepted", "review", "rejected", "used"]
OPEN: tuple[State, ...] = ("accepted", "review")
STATES: tuple[State, ...] = (*OPEN, "rejected", "used")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS flags (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, image_id TEXT NOT NULL, prompt TEXT NOT NULL,
  key TEXT NOT NULL, version TEXT NOT NULL, tokens BLOB NOT NULL, category TEXT, note TEXT NOT NULL,
  caller TEXT NOT NULL, state TEXT NOT NULL, made REAL NOT NULL, job TEXT);
CREATE TABLE IF NOT EXISTS settled (id TEXT PRIMARY KEY, at REAL NOT NULL);
"""
OPEN_A_CALLER = 20
OPEN_IN_ALL = 1000
USED_A_CATEGORY = 16  # flagged prompts per category that a job takes
USED_A_CALLER = 8


@dataclass(frozen=True, eq=False)
class Flag:
    """One flag. category: None leaves it to the model's judge. caller: a hash. job: the job that used it.

    state: "accepted" joins the next job, "review" waits for an operator, "rejected" and "used" are settled.
    """

    id: str
    image_id: str
    prompt: str
    version: str
    tokens: Tensor
    category: str | None
    note: str
    caller: str
    state: State
    made: float
    job: str | None


Flagged: TypeAlias = list[Flag]  # inside Flags the name `list` is a method


class FlagQueue(Protocol):
    """The flags of a deployment; safe to share between threads and processes."""

    def add(self, image: KeptImage, category: str | None, note: str, caller: str, *, review: bool) -> Flag:
        """Flag an image; an open flag of the same caller on the same prompt is returned unchanged.

        Raises Busy where the caller, or all callers, have too many open flags.
        """

    def forget(self) -> None:
        """Delete expired flags."""

    def get(self, id: str) -> Flag:
        """Return a flag. Raises NotFound."""

    def list(self, state: State | None = None) -> Flagged:
        """Return all flags, or those in one state, newest first."""

    def settle(self, id: str, state: Literal["accepted", "rejected"], category: str | None = None) -> Flag:
        """Accept or reject an open flag; `category` replaces its own. Raises NotFound; Conflict if it is settled."""

    def take(self, job: str) -> Flagged:
        """Return the flags that `job` learns from, one per prompt, and mark them used; repeatable.

        They are the oldest accepted flags, at most USED_A_CATEGORY per category and USED_A_CALLER per caller. Other
        accepted flags on their prompts become used as well.
        """


class Flags:
    """The flags in the SQLite file `path`; settled flags are deleted after `hours`. See FlagQueue for its methods."""

    def __init__(self, path: Path, hours: float) -> None:
        self._database, self._hours = Database(path, _SCHEMA), hours

    def add(self, image: KeptImage, category: str | None, note: str, caller: str, *, review: bool) -> Flag:
        """See FlagQueue."""
        with self._database.changing() as db:
            self._forget(db)
            key = text_key(image.prompt)
            same = "SELECT * FROM flags WHERE key = ? AND caller = ? AND state IN (?, ?)"
            known = db.execute(same, (key, caller, *OPEN)).fetchone()
            if known is not None:
                return _flag(known)
            self._refuse_flood(db, caller)
            state = "review" if review else "accepted"
            row = (secrets.token_hex(12), image.id, image.prompt, key, image.version, pack(image.tokens))
            names = "id, image_id, prompt, key, version, tokens, category, note, caller, state, made"
            rest = (category, note, caller, state, time.time())
            db.execute(f"INSERT INTO flags ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, *rest))
            return self._get(db, row[0])

    def forget(self) -> None:
        """See FlagQueue; `add` does so too, but there may be no next flag."""
        if self._database.is_there:
            with self._database.changing() as db:
                self._forget(db)
            self._database.write_back()

    def get(self, id: str) -> Flag:
        """See FlagQueue."""
        with self._database.reading() as db:
            return self._get(db, id)

    def list(self, state: State | None = None) -> Flagged:
        """See FlagQueue."""
        with self._database.reading() as db:
            states = STATES if state is None else (state,)
            marks = ", ".join("?" * len(states))
            rows = db.execute(f"SELECT * FROM flags WHERE state IN ({marks}) ORDER BY number DESC", states)
            return [_flag(row) for row in rows]

    def settle(self, id: str, state: Literal["accepted", "rejected"], category: str | None = None) -> Flag:
        """See FlagQueue."""
        with self._database.changing() as db:
            if (flag := self._get(db, id)).state not in OPEN:
                raise Conflict(f"flag {id} is {flag.state}")
            db.execute("UPDATE flags SET state = ?, category = ? WHERE id = ?", (state, category or flag.category, id))
            if state not in OPEN:
                self._note_settled(db, [id])
            return self._get(db, id)

    def take(self, job: str) -> Flagged:
        """See FlagQueue."""
        with self._database.changing() as db:
            if not (used := self._used_by(db, job)):
                first = "SELECT *, min(number) FROM flags WHERE state = 'accepted' GROUP BY key ORDER BY number"
                used = choose_fairly([_flag(row) for row in db.execute(first)])
                alike = "key = (SELECT key FROM flags WHERE id = ?) AND state = 'accepted'"
                rows = [row for flag in used for row in db.execute(f"SELECT id FROM flags WHERE {alike}", (flag.id,))]
                ids = [row["id"] for row in rows]
                db.executemany("UPDATE flags SET state = 'used', job = ? WHERE id = ?", [(job, id) for id in ids])
                self._note_settled(db, ids)
            return self._used_by(db, job)

    def _note_settled(self, db: Connection, ids: Sequence[str]) -> None:
        db.executemany("INSERT OR REPLACE INTO settled VALUES (?, ?)", [(id, time.time()) for id in ids])

    def _forget(self, db: Connection) -> None:
        horizon = time.time() - self._hours * HOUR_S
        # Flags settled by code without this table: the time of the flag stands for the time of its settlement.
        noted = "INSERT OR IGNORE INTO settled SELECT id, made FROM flags WHERE state NOT IN (?, ?)"
        db.execute(noted, OPEN)
        db.execute("DELETE FROM flags WHERE id IN (SELECT id FROM settled WHERE at < ?)", (horizon,))
        db.execute("DELETE FROM settled WHERE at < ?", (horizon,))

    def _used_by(self, db: Connection, job: str) -> Flagged:
        first = "SELECT *, min(number) FROM flags WHERE job = ? GROUP BY key ORDER BY number"
        return [_flag(row) for row in db.execute(first, (job,))]

    def _get(self, db: Connection, id: str) -> Flag:
        row = db.execute("SELECT * FROM flags WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no flag {id!r}")
        return _flag(row)

    def _refuse_flood(self, db: Connection, caller: str) -> None:
        counted = "SELECT count(*), sum(caller = ?) FROM flags WHERE state IN (?, ?)"
        in_all, own = db.execute(counted, (caller, *OPEN)).fetchone()
        refuse_flood(own or 0, in_all)


def refuse_flood(own: int, in_all: int) -> None:
    """Raise Busy where so many open flags of a caller, and of all callers, allow no further one."""
    if own >= OPEN_A_CALLER:
        raise Busy(f"{own} flags of yours are open; at most {OPEN_A_CALLER} may be", HOUR_S)
    if in_all >= OPEN_IN_ALL:
        raise Busy(f"{in_all} flags are open; at most {OPEN_IN_ALL} may be", HOUR_S)


def choose_fairly(flags: Flagged) -> Flagged:
    """Return the first of these flags, so many of each category and each caller as a job takes."""
    taken: Flagged = []
    for flag in flags:
        alike = sum(other.category == flag.category for other in taken)
        own = sum(other.caller == flag.caller for other in taken)
        if alike < USED_A_CATEGORY and own < USED_A_CALLER:
            taken.append(flag)
    return taken


def _flag(row: Row) -> Flag:
    values = {field.name: row[field.name] for field in fields(Flag)}
    return Flag(**{**values, "tokens": unpack(row["tokens"])})
