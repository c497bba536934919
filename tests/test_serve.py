"""Attacks on `safecb serve`: the real command with the tiny model, and kill -9 for each of its processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from app.child import HOPELESS
from codebook.store import CodebookStore
from tests.serving import PATIENCE_S, pixels, publish, texts, tiny_model, wait_for
from tests.supervised import Supervised
from worker.main import STEP_BACK


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


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
        assert worker.nice() == min(19, server.nice() + STEP_BACK)  # a job yields to callers
        assert redis.nice() == server.nice()
        assert server.environ()["MALLOC_ARENA_MAX"] == "1"
        assert server.environ()["OMP_NUM_THREADS"] == "1" and "MKL_NUM_THREADS" not in server.environ()
        assert run.end(number) == 0, run.told
    assert not any(child.is_running() for child in children)
    assert "Traceback" not in run.told


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
        assert redis_of(http) == "unreachable"
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
    second = Supervised(home, model)  # at once: the others may still be going
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
    assert "another safecb runs in" in second.told and "SAFECB_HOME" in second.told
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
    assert (data.parent / "data.damaged" / "appendonly.aof").exists()


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
    assert all(word in run.told for word in words), run.told
