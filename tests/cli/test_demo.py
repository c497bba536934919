"""The demo and its client against a real server; a thread plays the worker."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from cli.client import Client
from cli.demo import demo, improve
from cli.main import main
from core.errors import SafeCBError, Unavailable
from tests.support.serving import Server, played_worker, serving, settings_in

PROMPTS = ("a red apple", "a cat")


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(settings_in(tmp_path / "home", model)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with closing(Client(server.url)) as client:
        yield client


def test_the_demo_shows_the_main_job(
    server: Server, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "demo" / "before_after.png"
    with played_worker(server, publishes=True):
        assert demo(client, PROMPTS, picture)
    output = capsys.readouterr().out
    assert "FAIL" not in output and output.count("ok  ") == 4
    assert "round 1: accepted v1" in output
    with Image.open(picture) as sheet:
        assert sheet.size == (4 * 32, 2 * 32)
    assert [move["version"] for move in server.service.store.audit()] == ["v0", "v1", "v0"]


def test_a_job_without_a_version_fails_the_demo(server: Server, client: Client, tmp_path: Path) -> None:
    with played_worker(server, publishes=False):
        assert not demo(client, PROMPTS, tmp_path / "grid.png")
    assert server.http.get("/codebooks/active").json()["epoch"] == 0


def test_a_failed_job_is_reported(server: Server, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    job = client.improve()
    server.service.journal.update(job, status="failed", error="the loop broke")
    assert [state["status"] for state in client.follow(job)] == ["failed"]
    server.service.journal.update(client.improve(), status="cancelled")
    with pytest.raises(SafeCBError, match="there is no job"):
        list(client.follow("x"))


def test_improve_names_the_job_in_the_way(client: Client) -> None:
    job = client.improve()
    with pytest.raises(SafeCBError, match=job):
        improve(client)


def test_without_a_server_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFECB_PORT", "1")
    with closing(Client("http://127.0.0.1:1")) as client, pytest.raises(Unavailable, match="safecb serve"):
        client.active()
    for command in ("improve", "demo"):
        assert main([command]) == 1
        assert "safecb serve" in capsys.readouterr().err


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    assert "serve" in capsys.readouterr().err


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert (stop.value.code, capsys.readouterr().out) == (0, f"safecb {project['version']}\n")


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "start Redis, a worker and the server" in capsys.readouterr().err


def test_the_worker_command_runs_the_worker() -> None:
    done = subprocess.run([sys.executable, "-m", "cli.main", "worker"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "SAFECB_REDIS_URL" in done.stderr
