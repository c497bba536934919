"""The OpenAPI document against the server: schemathesis calls every operation, in every phase, with every check."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from app.routes import jobs
from core.errors import Conflict
from tests.support.serving import Server, serving, settings_in, tiny_model

CONFIG = Path(__file__).parents[1] / "support" / "schemathesis.toml"
LEAST_CALLS = 2000
# A schema cannot say which versions, policies and categories exist, that 1.0 is no integer, or what a float cannot
# hold: such values are refused with a 4xx, which the other checks look at. DELETE /jobs/{id} cancels: the job stays.
LEFT_OUT = ("--exclude-checks", "positive_data_acceptance,use_after_free")
PHASES = ("--phases", "examples,coverage,fuzzing,stateful")
OPTIONS = ("--max-examples", "25", "--seed", "1", "--rate-limit", "auto")
HEALTH = ("--suppress-health-check", "all")  # of generating calls


@contextmanager
def finished_jobs(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Finish each job soon, as a worker would: a stream without an end costs a caller its 10 s of patience."""
    monkeypatch.setattr(jobs, "POLL_EVERY_S", 0.02)
    journal, over = server.service.journal, Event()

    def work() -> None:
        while not over.wait(0.2):
            for record in journal.list(1000):
                with suppress(Conflict):  # cancelled meanwhile
                    if record.status == "queued":
                        attempt = journal.begin_attempt(record.id)
                        journal.update(record.id, attempt=attempt, status="finished")

    thread = Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


def test_every_answer_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, model = tmp_path / "home", tiny_model(tmp_path / "model")
    with serving(settings_in(home, model)) as server, finished_jobs(server, monkeypatch):
        server.publish(1)
        server.publish(2, output=True)
        schemathesis = (sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run")
        command = [*schemathesis, *PHASES, *OPTIONS, *HEALTH, *LEFT_OUT]
        ended = subprocess.run([*command, f"{server.url}/openapi.json"], capture_output=True, text=True, cwd=tmp_path)
    report = ended.stdout[-8000:] + ended.stderr[-2000:]
    calls, errors = re.search(r"(\d+) generated", ended.stdout), re.search(r"=+ (\d+) errors?,", ended.stdout)
    assert "Failures:" not in ended.stdout, report
    # An error is one of generating calls (CPython's parser beside other threads, too narrow a schema): one may be.
    assert ended.returncode == 0 or (errors is not None and int(errors[1]) == 1), report
    assert calls is not None and int(calls[1]) >= LEAST_CALLS, report


def test_a_path_lists_all_its_methods(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path / "home", tiny_model(tmp_path / "model"))) as server:
        for path, methods in {"/flags": "GET, HEAD, POST", "/jobs/x": "DELETE, GET, HEAD", "/generate": "POST"}.items():
            answer = server.http.request("PATCH", path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, methods)


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/docs", "/codebooks", "/codebooks/v77"])
def test_head_is_get_without_a_body(tmp_path: Path, path: str) -> None:
    with serving(settings_in(tmp_path / "home", tiny_model(tmp_path / "model"))) as server:
        head, whole = server.http.head(path), server.http.get(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]


def test_the_documentation_needs_no_other_host(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path / "home", tiny_model(tmp_path / "model"))) as server:
        page = server.http.get("/docs").text
        files = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(files) >= 3 and "://" not in page.replace("http://www.w3.org", "")
        for file in files:
            assert server.http.get(file).status_code == 200, file
