"""The SQLite file: what is kept, what is rolled back, and who waits for the disk."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from core.database import Database

SCHEMA = "CREATE TABLE IF NOT EXISTS rows (value INTEGER NOT NULL);"


def add(database: Database, value: int) -> None:
    with database.changing() as db:
        db.execute("INSERT INTO rows VALUES (?)", (value,))


def values(database: Database) -> list[int]:
    with database.reading() as db:
        return [row["value"] for row in db.execute("SELECT value FROM rows ORDER BY value")]


def test_two_objects_on_one_file_see_each_others_rows(tmp_path: Path) -> None:
    one, two = (Database(tmp_path / "new" / "rows.db", SCHEMA) for _ in range(2))
    add(one, 1)
    add(two, 2)
    assert values(one) == values(two) == [1, 2]


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "rows.db", SCHEMA)
    with pytest.raises(KeyError), database.changing() as db:
        db.execute("INSERT INTO rows VALUES (1)")
        raise KeyError
    assert values(database) == []


def test_a_use_does_not_wait_for_the_log_to_be_written_back(tmp_path: Path) -> None:
    database, log = Database(tmp_path / "rows.db", SCHEMA), tmp_path / "rows.db-wal"
    add(database, 1)
    before = log.stat().st_size
    add(database, 2)
    assert 0 < before < log.stat().st_size  # it goes on; a file closed by everybody has none


def test_the_file_is_let_go_with_the_object(tmp_path: Path) -> None:
    database = Database(tmp_path / "rows.db", SCHEMA)
    add(database, 1)
    del database
    gc.collect()
    assert not (tmp_path / "rows.db-wal").exists()
    assert values(Database(tmp_path / "rows.db", SCHEMA)) == [1]
