"""Names in Redis: one deployment's are the same in all its processes, and another's are others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import wire
from core.settings import Settings
from core.wire import PLAIN_NAMES, RedisNames


def names(home: Path, **environ: str) -> set[str]:
    settings = Settings.from_environ({"SAFECB_HOME": str(home), "SAFECB_REDIS_URL": "redis://redis.example", **environ})
    return set(astuple(RedisNames.of(settings)))


def test_processes_of_a_home_agree_and_homes_share_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        one, *others = pool.map(lambda _: names(tmp_path / "one"), range(8))
    assert others == [one] * 7 and len(one) == len(astuple(PLAIN_NAMES))
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["redis.id"]
    (tmp_path / "elsewhere").symlink_to(tmp_path / "one")  # as a container mounts it
    assert names(tmp_path / "elsewhere") == one
    assert not one & names(tmp_path / "two") and not one & set(astuple(PLAIN_NAMES))


def test_of_two_processes_that_give_a_home_its_id_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = names(tmp_path / "home")
    mark = (tmp_path / "home" / "redis.id").read_bytes()

    def late() -> str:
        (tmp_path / "other" / "redis.id").write_bytes(mark)  # by another one, in the meantime
        return "none"

    monkeypatch.setattr(wire, "secrets", SimpleNamespace(token_hex=late))
    assert names(tmp_path / "other") == first
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["redis.id"]


def test_machines_of_a_bucket_share_all_but_the_assistants(tmp_path: Path) -> None:
    one, two = (names(tmp_path / name, SAFECB_STORE="s3://bucket/store") for name in ("one", "two"))
    assert len(one & two) == len(one) - 1 and not (tmp_path / "one").exists()


def test_without_a_redis_nothing_is_made(tmp_path: Path) -> None:
    assert RedisNames.of(Settings.from_environ({"SAFECB_HOME": str(tmp_path / "home")})) == PLAIN_NAMES
    assert not (tmp_path / "home").exists()
