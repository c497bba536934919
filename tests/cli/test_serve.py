"""Attacks on `safecb serve`: the real command with the tiny model, and kill -9 for each of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from codebook.store import CodebookStore
from core.wire import HOPELESS
from tests.support.redis_home import NO_MASTER, own_redis
from tests.support.serving import PATIENCE_S, pixels, publish, texts, wait_for
from tests.support.supervised import ROOT, Supervised
from worker.niceness import niceness


def draw(http: httpx2.Client) -> bytes:
    answer = http.post("/generate", json={"prompt": "a red apple", "seed": 7}, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.content


def redis_of(http: httpx2.Client) -> str:
    answer = http.get("/health/ready")
    assert answer.status_code == 200
    state: str = answer.json()["redis"]
    return state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_it(model: Path, tmp_path: Path, runs: list[Supervised], number: int) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        redis, worker, server = children = run.children()
        assert worker.nice() == min(19, server.nice() + niceness(0.25))  # a job yields to callers
        assert redis.nice() == server.nice()
        assert server.environ()["MALLOC_ARENA_MAX"] == "1"
        assert server.environ()["OMP_NUM_THREADS"] == "1" and "MKL_NUM_THREADS" not in server.environ()
        assert run.end(number) == 0, run.output
    assert not any(child.is_running() for child in children)
    assert "Traceback" not in run.output


def test_each_child_is_started_again_and_the_version_stays(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    home = tmp_path / "home"
    run = Supervised(home, model)
    runs.append(run)
    with run.wait_ready() as http:
        store = CodebookStore(home / "store")
        version = publish(store, 1).version
        http.post(f"/codebooks/{version}/activate")
        before = draw(http)
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        for part in ("redis-server", "worker.main"):
            old = run.child(part)
            old.kill()
            assert draw(http) == before  # generation needs neither
            run.wait_replaced(part, old)
        wait_for("Redis answers again", lambda: redis_of(http) == "ok")
        run.child("app.server").kill()
    with run.wait_ready(starts=2) as http:
        assert http.get("/codebooks/active").json()["version"] == version
        assert draw(http) == before


def test_generation_goes_on_while_redis_cannot_run(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        run.child("redis-server").suspend()  # alive, and answering nobody
        wait_for("it is noticed", lambda: redis_of(http) == "unreachable")
        draw(http)
        assert http.post("/improve", json={}).status_code == 202
        run.child("redis-server").resume()
        wait_for("Redis answers again", lambda: redis_of(http) == "ok")


def test_a_killed_supervisor_leaves_nobody_behind(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    home = tmp_path / "home"
    first = Supervised(home, model)
    with first.wait_ready() as http:
        before = draw(http)
        children = first.children()
        first.end(signal.SIGKILL)
    second = Supervised(home, model)  # immediately: the others may still be going
    runs.append(second)
    with second.wait_ready() as http:
        wait_for("the first one's children are gone", lambda: not any(child.is_running() for child in children))
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        assert draw(http) == before
        assert len(second.children()) == 3


def test_a_second_supervisor_on_the_same_home_is_refused(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    home = tmp_path / "home"
    run = Supervised(home, model)
    runs.append(run)
    run.child("redis-server")
    second = Supervised(home, model)
    runs.append(second)
    assert second.process.wait(PATIENCE_S) == HOPELESS
    assert "another safecb runs in" in second.output and "SAFECB_HOME" in second.output
    with run.wait_ready() as http:
        draw(http)


def test_damaged_redis_data_are_set_aside(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    data = tmp_path / "home" / "redis" / "data"
    data.mkdir(parents=True)
    (data / "appendonly.aof").write_bytes(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\nnonsense\r\n" * 10)
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
    assert (data.parent / "data.damaged.1" / "appendonly.aof").exists()


def test_a_long_home_still_gets_a_socket(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    home = tmp_path / ("a long name " * 10)
    run = Supervised(home, model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        assert texts(draw(http))["codebook"] == "v0"
        assert pixels(draw(http))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SAFECB_PORT": "70000"}, ["SAFECB_PORT", "70000"]),
        ({"SAFECB_PROT": "1"}, ["SAFECB_PROT"]),
        ({"SAFECB_DEVICE": "tpu"}, ["SAFECB_DEVICE", "tpu"]),
        ({"SAFECB_MODEL": "/nowhere/at/all"}, ["/nowhere/at/all"]),
        ({"SAFECB_HOST": "203.0.113.1"}, ["SAFECB_HOST", "203.0.113.1"]),
    ],
)
def test_what_cannot_work_stops_the_start_and_is_named(
    model: Path, tmp_path: Path, runs: list[Supervised], environ: Mapping[str, str], words: list[str]
) -> None:
    settings = {"SAFECB_MODEL": str(model), **environ}
    run = Supervised(tmp_path / "home", Path(settings.pop("SAFECB_MODEL")), **settings)
    runs.append(run)
    assert run.process.wait(PATIENCE_S) == HOPELESS
    assert all(word in run.output for word in words), run.output


@pytest.mark.fault("F20")
@pytest.mark.parametrize("module", ["cli.main", "app.server", "worker.main"])
def test_a_broken_redis_url_stops_each_process_and_tells_nothing_of_the_password(tmp_path: Path, module: str) -> None:
    environ = {"SAFECB_HOME": str(tmp_path / "home"), "SAFECB_REDIS_URL": "redis://:hunter2/verysecret#part@host:6379"}
    command = [sys.executable, "-m", module, *(["serve"] if module == "cli.main" else [])]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    said = done.stdout + done.stderr
    assert done.returncode == HOPELESS, said
    assert "SAFECB_REDIS_URL" in said and "percent-encode" in said and "Traceback" not in said
    assert not any(part in said for part in ("hunter2", "verysecret", "part@"))
    assert not (tmp_path / "home").exists()  # nothing was started


def redis_in(home: Path) -> Redis[bytes]:
    return Redis(unix_socket_path=str(home / "redis" / "redis.sock"))


@pytest.mark.fault("F23")
def test_a_removed_socket_is_noticed_and_made_again(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        with redis_in(tmp_path / "home") as redis:
            redis.set("queued", "before")
        old = run.child("redis-server")
        (tmp_path / "home" / "redis" / "redis.sock").unlink()
        wait_for("it is noticed", lambda: redis_of(http) == "unreachable")
        run.wait_replaced("redis-server", old)
        wait_for("Redis answers again", lambda: redis_of(http) == "ok")
        with redis_in(tmp_path / "home") as redis:
            assert redis.get("queued") == b"before"
        assert "redis.sock" in run.output


@pytest.mark.fault("F23")
def test_what_keeps_redis_from_starting_is_named_and_sound_data_stay(
    model: Path, tmp_path: Path, runs: list[Supervised]
) -> None:
    home = tmp_path / "home"
    first = Supervised(home, model)
    runs.append(first)
    first.child("redis-server")
    wait_for("the socket is there", (home / "redis" / "redis.sock").exists)
    with redis_in(home) as redis:
        redis.set("queued", "before")
    assert first.end(signal.SIGTERM) == 0
    (home / "redis" / "redis.sock").mkdir()
    second = Supervised(home, model)
    runs.append(second)
    with second.wait_ready() as http:
        wait_for("the reason is named", lambda: "redis.sock is in the way" in second.output)
        assert b"before" in (home / "redis" / "data" / "appendonly.aof").read_bytes()
        (home / "redis" / "redis.sock").rmdir()
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
        with redis_in(home) as redis:
            assert redis.get("queued") == b"before"
    assert not list((home / "redis").glob("data.damaged*")) and "Traceback" not in second.output


@pytest.mark.fault("F23")
def test_damaged_data_are_set_aside_beside_those_of_before(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    folder = tmp_path / "home" / "redis"
    for name in ("data.damaged", "data.damaged.1", "data"):
        (folder / name).mkdir(parents=True)
        (folder / name / "appendonly.aof").write_bytes(b"*1\r\n$4\r\nNOPE\r\n" + name.encode())
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        wait_for("Redis answers", lambda: redis_of(http) == "ok")
    for name, now in (
        ("data.damaged", "data.damaged"),
        ("data.damaged.1", "data.damaged.1"),
        ("data", "data.damaged.2"),
    ):
        assert (folder / now / "appendonly.aof").read_bytes().endswith(name.encode())


@pytest.mark.fault("F22")
def test_a_stopped_worker_is_reported_by_health_and_job(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    with run.wait_ready() as http:
        worker = run.child("worker.main")
        log = tmp_path / "home" / "logs" / "worker.log"
        wait_for("the worker listens", lambda: "Listening" in log.read_text())
        worker.suspend()
        try:
            job = http.post("/improve", json={}).json()["links"]["self"]
            wait_for("it is missed", lambda: http.get("/health/ready").json()["worker"]["state"] == "silent")
            ready = http.get("/health/ready")
            assert (ready.status_code, ready.json()["redis"]) == (200, "ok")
            body = http.get(job).json()
            assert body["status"] == "queued"
            assert "no worker has been heard of since 20" in body["progress"]["message"]
        finally:
            worker.resume()
        wait_for("it is heard again", lambda: http.get("/health/ready").json()["worker"]["state"] == "heard")
        wait_for("the job is begun", lambda: http.get(job).json()["status"] != "queued")
        assert "no worker" in run.output and "heard of again" in run.output


@pytest.mark.fault("F21")
def test_a_replica_is_reported_by_health_and_the_worker_waits(
    model: Path, tmp_path: Path, runs: list[Supervised]
) -> None:
    with own_redis(*NO_MASTER) as url, Redis.from_url(url) as redis:
        run = Supervised(tmp_path / "home", model, SAFECB_REDIS_URL=url)
        runs.append(run)
        with run.wait_ready() as http:
            wait_for("it is noticed", lambda: redis_of(http) == "read-only")
            log = tmp_path / "home" / "logs" / "worker.log"
            wait_for("the worker waits", lambda: "waiting for a Redis" in log.read_text())
            worker = run.child("worker.main")
            redis.execute_command("REPLICAOF", "NO", "ONE")
            wait_for("the worker says that it is over", lambda: "can be used again" in log.read_text())
            assert redis_of(http) == "ok"
            assert log.read_text().count("waiting for a Redis") == 1
            assert worker.is_running() and "Traceback" not in log.read_text() + run.output
            assert "jobs cannot be queued" in run.output and "jobs can be queued again" in run.output
