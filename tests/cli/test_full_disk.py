"""Attacks on a running service through its disk: full to the last byte, read-only, immutable, no file left to open."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from codebook.store import CodebookStore
from tests.support.disks import BLOCK, SmallDisk, immutable, small_disk
from tests.support.serving import PATIENCE_S, publish, wait_for
from tests.support.supervised import Supervised


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    """A disk that holds SAFECB_HOME and nothing else; the supervisor prints elsewhere."""
    with small_disk(tmp_path / "home", getattr(request, "param", "tmpfs")) as disk:
        yield disk


def draw(http: httpx2.Client) -> str:
    answer = http.post("/generate", json={"prompt": "a red apple"})
    assert answer.status_code == 200, answer.text
    id: str = answer.json()["images"][0]["id"]
    return id


def move(http: httpx2.Client, path: str, body: object = None) -> str:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["new"]["version"]
    return version


def storage(http: httpx2.Client) -> dict[str, str]:
    answer = http.get("/health/ready")
    assert answer.status_code == 200, answer.text
    states: dict[str, str] = answer.json()["storage"]
    return states


def refused(answer: httpx2.Response, status: int, home: Path, *words: str) -> None:
    """The answer is a problem document with these words, and with no path of the server."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:safecb:problem:{'no-room' if status == 507 else 'no-access'}"
    assert all(word in body["detail"] for word in words), body
    assert str(home) not in answer.text
    assert int(answer.headers["Retry-After"]) >= 1


@contextmanager
def started(disk: SmallDisk, model: Path, runs: list[Supervised]) -> Iterator[tuple[Supervised, httpx2.Client]]:
    """A service on `disk` with v1 published, and v0 active again after v1."""
    run = Supervised(disk.folder, model)
    runs.append(run)
    with run.wait_ready() as http:
        publish(CodebookStore(disk.folder / "store"), 1)
        move(http, "/codebooks/v1/activate")
        move(http, "/codebooks/rollback")
        wait_for("Redis answers", lambda: http.get("/health/ready").json()["redis"] == "ok")
        yield run, http


@pytest.mark.fault("F06")
@pytest.mark.parametrize("disk", ["tmpfs", "ext4"], indirect=True)
def test_on_a_full_disk_images_and_moves_go_on_and_the_rest_says_why(
    disk: SmallDisk, model: Path, runs: list[Supervised]
) -> None:
    with started(disk, model, runs) as (run, http):
        image = draw(http)
        disk.fill()
        for _ in range(10):
            assert move(http, "/codebooks/v1/activate") == "v1"
            draw(http)
            assert move(http, "/codebooks/rollback") == "v0"
            disk.fill()  # what the move has given back too
        refused(http.post("/improve", json={}), 507, disk.folder, "SAFECB_HOME/jobs", "full")
        refused(http.post("/flags", json={"image_id": image}), 507, disk.folder, "SAFECB_HOME/flags.db", "full")
        wait_for("health reports it", lambda: storage(http) == {"SAFECB_HOME": "full", "SAFECB_STORE": "full"})
        disk.free()
        wait_for("health reports it", lambda: storage(http) == {"SAFECB_HOME": "ok", "SAFECB_STORE": "ok"})
        assert http.post("/flags", json={"image_id": image}).status_code == 201
        assert http.post("/flags", json={"image_id": draw(http)}).status_code == 201
        job = http.post("/improve", json={})
        assert job.status_code == 202, job.text
        here = job.headers["Location"]
        wait_for("a worker has the job", lambda: http.get(here).json()["status"] != "queued")
        assert move(http, "/codebooks/v1/activate") == "v1"
    assert [record["epoch"] for record in CodebookStore(disk.folder / "store").audit()] == list(range(24))
    assert "SAFECB_HOME cannot be written" in run.output and "SAFECB_HOME can be written again" in run.output
    assert "Traceback" not in run.output


@pytest.mark.fault("F06")
def test_on_a_read_only_disk_images_go_on_and_the_rest_says_why(
    disk: SmallDisk, model: Path, runs: list[Supervised]
) -> None:
    with started(disk, model, runs) as (run, http):
        image = draw(http)
        with disk.read_only():
            draw(http)
            for path in ("/codebooks/rollback", "/codebooks/v1/activate"):
                refused(http.post(path), 503, disk.folder, "SAFECB_STORE/.lock", "read-only")
            refused(http.post("/improve", json={}), 503, disk.folder, "SAFECB_HOME/jobs", "read-only")
            refused(http.post("/flags", json={"image_id": image}), 503, disk.folder, "SAFECB_HOME", "read-only")
            wait_for("health reports it", lambda: set(storage(http).values()) == {"read-only"})
        wait_for("health reports it", lambda: set(storage(http).values()) == {"ok"})
        assert http.post("/flags", json={"image_id": image}).status_code == 201
        assert http.post("/improve", json={}).status_code == 202
        assert move(http, "/codebooks/v1/activate") == "v1"
    assert "Traceback" not in run.output


@pytest.mark.fault("F06")
@pytest.mark.parametrize("name", [".", "ACTIVE", "audit.jsonl"])
def test_what_may_not_be_changed_is_named_and_images_go_on(
    disk: SmallDisk, model: Path, runs: list[Supervised], name: str
) -> None:
    store = disk.folder / "store"
    with started(disk, model, runs) as (_, http):
        with immutable(store / name):
            moves = [http.post("/codebooks/v1/activate"), http.post("/codebooks/rollback")]
            # A move is real without its line in the log, which the next move has to write first.
            refused(moves[name == "audit.jsonl"], 503, disk.folder, f"SAFECB_STORE/{name}".rstrip("/."), "may not")
            draw(http)
            wait_for("health reports it", lambda: storage(http)["SAFECB_STORE"] == "not permitted")
        wait_for("health reports it", lambda: storage(http)["SAFECB_STORE"] == "ok")
        assert move(http, "/codebooks/rollback", {"to": "v0"}) == "v0"
        assert move(http, "/codebooks/v1/activate") == "v1"
    log = CodebookStore(store).audit()
    assert [record["epoch"] for record in log] == list(range(len(log)))


@pytest.mark.fault("F06")
def test_too_many_open_files_are_said_and_pass(disk: SmallDisk, model: Path, runs: list[Supervised]) -> None:
    with started(disk, model, runs) as (run, http):
        server = run.child("app.server")
        soft, hard = server.rlimit(resource.RLIMIT_NOFILE)
        draw(http)  # the first picture loads code, which is read from files too
        server.rlimit(resource.RLIMIT_NOFILE, (3, hard))
        for path in ("/codebooks/v1/activate", "/codebooks/rollback", "/improve"):
            refused(http.post(path, json={}), 503, disk.folder, "too many files are open")
        refused(http.get("/codebooks"), 503, disk.folder, "SAFECB_STORE/versions", "too many files are open")
        draw(http)
        server.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert move(http, "/codebooks/v1/activate") == "v1"


@pytest.mark.fault("F06")
def test_a_start_on_a_read_only_disk_serves_images(disk: SmallDisk, model: Path, runs: list[Supervised]) -> None:
    with started(disk, model, runs) as (run, _):
        assert run.end(signal.SIGTERM) == 0
    with disk.read_only():
        second = Supervised(disk.folder, model)
        runs.append(second)
        with second.wait_ready() as http:
            draw(http)
            refused(http.post("/codebooks/v1/activate"), 503, disk.folder, "read-only")
            line = next(line for line in second.output.splitlines() if "neither" in line)
            assert "SAFECB_HOME" in line and "read-only" in line
        second.end(signal.SIGTERM)
    assert "Traceback" not in second.output


@pytest.mark.fault("F06")
def test_a_start_on_a_full_disk_that_takes_its_output_too_serves_images(
    tmp_path: Path, model: Path, runs: list[Supervised]
) -> None:
    with small_disk(tmp_path / "disk") as disk, socket.socket() as taken:
        home = disk.folder / "home"
        first = Supervised(home, model)
        first.wait_ready().close()
        assert first.end(signal.SIGTERM) == 0
        with first.log.open("ab") as log:
            log.write(b"\n" * (-log.tell() % BLOCK))  # its last block has room that is not the disk's
        disk.fill()
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        second = Supervised(home, model, SAFECB_PORT=str(port))
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
                wait_for("the server is ready", lambda: is_ready(http))
                draw(http)
                assert second.output == ""
        finally:
            second.end(signal.SIGTERM)


def is_ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.fault("F06")
def test_a_first_start_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    disk: SmallDisk, model: Path, runs: list[Supervised]
) -> None:
    disk.fill()
    run = Supervised(disk.folder, model)
    runs.append(run)
    wait_for("it says why", lambda: "its disk is full" in run.output)
    disk.free()
    with run.wait_ready() as http:
        draw(http)
    assert "Traceback" not in run.output
