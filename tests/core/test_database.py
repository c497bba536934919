"""The SQLite file: what is kept, what is rolled back, and who waits for the disk."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import pytest

from core.database import Database
from core.storage import file_system, is_network, is_remote

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


def test_whoever_makes_a_new_file_in_the_same_moment_waits_for_the_others(tmp_path: Path) -> None:
    line = Barrier(4, timeout=30)

    def make(files: list[Database]) -> None:
        for database in files:
            line.wait()
            add(database, 1)

    numbers = range(40)
    files = [[Database(tmp_path / f"{number}.db", SCHEMA) for number in numbers] for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, files))
    assert [values(database) for database in files[0]] == [[1] * 4] * len(numbers)


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


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_file_that_other_machines_may_open_has_no_wal(
    is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.database.is_remote", lambda folder: is_shared)
    one, two = (Database(tmp_path / "rows.db", SCHEMA) for _ in range(2))
    add(one, 1)
    add(two, 2)
    with one.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == ("delete" if is_shared else "wal")
    two.write_back()
    assert values(two) == [1, 2]
    assert (tmp_path / "rows.db-wal").exists() != is_shared


class Mounted(NamedTuple):
    mountpoint: str
    fstype: str


def test_the_nearest_mount_says_whether_a_folder_is_shared(tmp_path: Path) -> None:
    mounts = [Mounted("/", "ext4"), Mounted("/srv", "nfs4"), Mounted("/srv/own", "xfs"), Mounted("/s3", "fuse.s3fs")]
    kinds = {
        folder: file_system(Path(folder), mounts) for folder in ("/var", "/srv/home", "/srv/own/x", "/srvx", "/s3")
    }
    assert kinds == {"/var": "ext4", "/srv/home": "nfs4", "/srv/own/x": "xfs", "/srvx": "ext4", "/s3": "fuse.s3fs"}
    assert [is_network(kind) for kind in kinds.values()] == [False, True, False, False, True]
    assert file_system(Path("/var"), []) == "" and not is_network("") and not is_remote(tmp_path)
