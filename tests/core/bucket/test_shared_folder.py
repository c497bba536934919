"""Shared folder: what one machine saves the others read, and what it deletes is gone there."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.bucket.bucket import Bucket
from core.bucket.shared_folder import SharedFolder
from core.errors import NoBucket
from tests.support.servers.s3 import S3, Line


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def test_files_reach_the_other_machine_and_deletions_too(s3: S3, line: Line, tmp_path: Path) -> None:
    url = s3.bucket()
    one, other = (SharedFolder(tmp_path / name, Bucket(url), "policies") for name in ("one", "other"))
    with one.changing() as folder:
        (folder / "a.csv").write_text("first")
        (folder / ".lock").write_text("mine")
    assert content(other.read()) == {"a.csv": "first"}
    with other.changing() as folder:
        (folder / "a.csv").write_text("second")
        (folder / "b.csv").write_text("more")
    assert content(one.read()) == {"a.csv": "second", "b.csv": "more"}
    with one.changing() as folder:
        (folder / "a.csv").unlink()
    assert content(other.read()) == {"b.csv": "more"}
    line.cut = True
    assert content(other.read()) == {"b.csv": "more"}  # as it was last
    with pytest.raises(NoBucket):
        SharedFolder(tmp_path / "third", Bucket(url), "policies").read()
    with pytest.raises(NoBucket), one.changing():
        pytest.fail("nothing may be changed that the others would not see")


def test_without_a_bucket_it_is_a_folder(tmp_path: Path) -> None:
    alone = SharedFolder(tmp_path, None, "policies")
    with alone.changing() as folder:
        (folder / "a.csv").write_text("first")
    assert content(alone.read()) == {"a.csv": "first"}
