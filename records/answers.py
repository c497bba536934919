"""Answers to requests that carry an Idempotency-Key, in a file: a request that is sent again gets the first answer.

Knows rows in a file. Knows nothing of HTTP beyond a status, headers and bytes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Protocol
from uuid import uuid4

from core.database import Database
from core.errors import BadInput, Conflict

FIELD = "Idempotency-Key"
KEEP_S = 24 * 3600.0
MOST_BYTES = 256 * 2**20  # of all bodies; the oldest go first

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, request TEXT NOT NULL, begun REAL NOT NULL,
  process TEXT NOT NULL, status INTEGER, headers TEXT, body BLOB);
"""
_TOO_MUCH = """
DELETE FROM answers WHERE status IS NOT NULL AND (begun < ? OR number IN (
  SELECT number FROM (SELECT number, sum(length(body)) OVER (ORDER BY number DESC) AS total FROM answers
                      WHERE status IS NOT NULL) WHERE total > ?))
"""


@dataclass(frozen=True)
class Answer:
    """A finished answer. headers: names and values, in order."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class AnswerLog(Protocol):
    """The answers of a server; thread-safe."""

    def begin(self, key: str, request: str) -> Answer | None:
        """Return the answer under a key, or None: then the caller makes it, and ends with `keep` or `drop`.

        request: a hash of the whole request. Raises Conflict while another request under the key is being answered,
        BadInput where the key stands for another request.
        """

    def renew(self, key: str) -> None:
        """Say that the request under a key is still being answered."""

    def keep(self, key: str, answer: Answer) -> None:
        """Keep the answer under a key."""

    def drop(self, key: str) -> None:
        """Free a key whose request came to no answer worth keeping."""


class Answers:
    """The answers in the SQLite file `path`. Requests that a process left unfinished may be begun again by the next."""

    def __init__(self, path: Path) -> None:
        self._database, self._process = Database(path, _SCHEMA, expendable=True), uuid4().hex

    def begin(self, key: str, request: str) -> Answer | None:
        """See AnswerLog."""
        with self._database.reading() as db:  # duplicates need not wait for each other
            known = self._found(db, key, request)
        if known is not None:
            return known
        with self._database.changing() as db:
            known = self._found(db, key, request)
            if known is None:
                values = (key, request, time.time(), self._process)
                db.execute("INSERT OR REPLACE INTO answers (key, request, begun, process) VALUES (?, ?, ?, ?)", values)
        return known

    def renew(self, key: str) -> None:
        """See AnswerLog: a request is begun again once its process has ended, not before."""

    def keep(self, key: str, answer: Answer) -> None:
        """Keep the answer under a key, for KEEP_S and within MOST_BYTES."""
        with self._database.changing() as db:
            values = (answer.status, json.dumps(answer.headers), answer.body, key, self._process)
            db.execute("UPDATE answers SET status = ?, headers = ?, body = ? WHERE key = ? AND process = ?", values)
            self._forget(db)

    def drop(self, key: str) -> None:
        """See AnswerLog."""
        with self._database.changing() as db:
            unfinished = "DELETE FROM answers WHERE key = ? AND process = ? AND status IS NULL"
            db.execute(unfinished, (key, self._process))

    def _found(self, db: Connection, key: str, request: str) -> Answer | None:
        """The answer under a key, None where the request may begin; raises as `begin` does."""
        row = db.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None or row["begun"] < time.time() - KEEP_S:
            return None
        check_same(row["request"], request)
        if row["status"] is not None:
            return Answer(row["status"], [tuple(pair) for pair in json.loads(row["headers"])], row["body"])
        if row["process"] == self._process:
            raise being_answered()
        return None

    def _forget(self, db: Connection) -> None:
        db.execute(_TOO_MUCH, (time.time() - KEEP_S, MOST_BYTES))


def check_same(known: str, request: str) -> None:
    """Raise BadInput where a key stands for another request."""
    if known != request:
        raise BadInput(FIELD, "<this key>", "another key: this one came with another request before")


def being_answered() -> Conflict:
    """The error of a request whose key another one is being answered under."""
    return Conflict(f"a request with this {FIELD} is being answered")
