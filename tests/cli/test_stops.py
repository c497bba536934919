"""Attacks on stops: signals while it loads, idles, draws and streams. Nobody gets less than an answer, or a reason."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from core.wire import HOPELESS
from tests.support.serving import PATIENCE_S, everything, raw, wait_for
from tests.support.supervised import ROOT, Supervised

EVENTS = {"Accept": "text/event-stream"}
ACCEPTS: tuple[dict[str, str], ...] = ({}, {"Accept": "image/png"}, EVENTS)
SOON_S = 12.0  # "in about a second", on a busy machine; a server that is killed takes longer


class SlowServer:
    """One server process without a supervisor and without Redis, whose images take 16 times `step_s`."""

    def __init__(self, home: Path, model: Path, drain_s: int, step_s: float) -> None:
        self.log = home.parent / "server.log"
        environ = {
            "SAFECB_HOME": str(home),
            "SAFECB_MODEL": str(model),
            "SAFECB_PORT": "0",
            "SAFECB_CORES": "1",
            "SAFECB_SECOND_JUDGE": "opennsfw",
            "SAFECB_REDIS_URL": f"unix://{home}/none.sock",
            "SAFECB_DRAIN_S": str(drain_s),
            "STEP_S": str(step_s),
        }
        command = [sys.executable, "-m", "tests.support.servers.slow_server"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environ}, stdout=output, stderr=output
            )
        wait_for("the server is ready", lambda: self.ready or self.process.poll() is not None)
        assert self.ready, self.output
        self.url = self.ready[1]
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE_S, limits=httpx2.Limits())

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def ready(self) -> re.Match[str] | None:
        return re.search(r"Safe-CB is ready at (\S+)", self.output)

    def call(self, callers: ThreadPoolExecutor, count: int) -> list[Future[httpx2.Response]]:
        """Begin calls for an image each, JSON, PNG and streams in turn; returns when all of them are waited for."""

        def draw(i: int) -> httpx2.Response:
            return self.http.post("/generate", json={"prompt": "a cat", "seed": i}, headers=ACCEPTS[i % 3])

        calls = [callers.submit(draw, i) for i in range(count)]
        wait_for("all but the first sixteen are in the queue", lambda: self.queued() == count - 16)
        return calls

    def queued(self) -> int:
        """How many images are ahead of another one."""
        with self.http.stream("POST", "/generate", json={"prompt": "a cat"}, headers=EVENTS) as answer:
            ahead: int = next(streamed(answer.iter_lines()))[1]["ahead"]
            return ahead

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        wait_for("the server knows", lambda: "the server stops" in self.output)

    def end(self) -> str:
        """Wait for the end, which is to be a clean one; returns what was logged."""
        assert self.process.wait(PATIENCE_S) == 0, self.output
        assert "Traceback" not in self.output
        return self.output


@pytest.fixture
def slow(model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SlowServer]:
    server = SlowServer(tmp_path / "home", model, *request.param)
    try:
        with server.http:
            yield server
    finally:
        server.process.kill()
        server.process.wait()


def streamed(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The (name, data) of server-sent events."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def check_refused(answer: httpx2.Response) -> None:
    """Check that an answer is the 503 of a server that stops."""
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.json()["type"] == "urn:safecb:problem:unavailable" and answer.json()["status"] == 503
    assert int(answer.headers["Retry-After"]) >= 1


def check_given_up(answer: httpx2.Response) -> None:
    """Check that a call was refused, or that its stream ended with that."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        name, data = list(streamed(iter(answer.text.splitlines())))[-1]
        assert name == "error" and data["retry_after"] >= 1 and answer.text.endswith("\n\n")
    else:
        check_refused(answer)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(120, 0.4)], indirect=True)
def test_what_was_accepted_is_finished_and_nothing_else(slow: SlowServer) -> None:
    with ThreadPoolExecutor(32) as callers, httpx2.Client(base_url=slow.url, timeout=PATIENCE_S) as late:
        assert late.get("/health/ready").status_code == 200
        calls = slow.call(callers, 32)
        slow.signal()
        ready = late.get("/health/ready")  # also on a connection from before
        assert (ready.status_code, ready.json()["status"]) == (503, "unready")
        assert late.get("/health/live").status_code == 200
        for method, path in (("POST", "/generate"), ("GET", "/jobs"), ("POST", "/codebooks/rollback")):
            answer = late.request(method, path, json={"prompt": "a dog"} if path == "/generate" else None)
            check_refused(answer)
            assert answer.headers["connection"] == "close"
        assert slow.process.poll() is None
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 32
    assert all("event: image" in answer.text for answer in answers[2::3])
    slow.end()


def is_closed(url: str) -> bool:
    """Whether nobody can connect to the server any more."""
    with suppress(ConnectionRefusedError), raw(url):
        return False
    return True


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(120, 0.1)], indirect=True)
@pytest.mark.parametrize("streams", [False, True])
def test_who_is_connected_at_the_stop_gets_an_answer(slow: SlowServer, streams: bool) -> None:
    body = b'{"prompt": "a cat"}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
    with raw(slow.url) as caller:
        if streams:  # its head is out before the stop, and says keep-alive
            caller.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert slow.http.get("/health/live", headers={"Connection": "close"}).status_code == 200
        slow.signal()
        stream = b""
        while streams and not stream.endswith(b"0\r\n\r\n"):
            stream += caller.recv(65536)
        wait_for("nobody can connect any more", lambda: is_closed(slow.url))
        time.sleep(0.3)  # a busy caller
        caller.sendall(b"GET /codebooks HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = everything(caller)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"connection: close\r\n" in answer.lower()
    assert (b"event: image" in stream) == streams
    slow.end()


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(1, 0.5)], indirect=True)
def test_what_the_bound_leaves_unfinished_gets_a_retry_after(slow: SlowServer) -> None:
    with ThreadPoolExecutor(32) as callers:
        calls = slow.call(callers, 32)
        slow.signal()
        for call in calls:
            check_given_up(call.result())
    assert re.search("32 requests are given up after 1 s .SAFECB_DRAIN_S.", slow.end())


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(600, 0.5)], indirect=True)
def test_a_second_signal_ends_it_immediately(slow: SlowServer) -> None:
    with ThreadPoolExecutor(20) as callers:
        calls = slow.call(callers, 20)
        slow.signal(signal.SIGINT)
        assert not any(call.done() for call in calls)
        slow.process.send_signal(signal.SIGTERM)
        for call in calls:
            check_given_up(call.result())
    assert "given up on another signal" in slow.end()


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(1, 0.0)], indirect=True)
def test_a_body_that_never_ends_holds_up_no_stop(slow: SlowServer) -> None:
    with raw(slow.url) as caller:
        caller.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        caller.sendall(b"Content-Length: 100\r\n\r\n{")
        wait_for("its body is waited for", lambda: slow.http.get("/health/live").status_code == 200)
        slow.signal()
        answer = everything(caller)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5\r\n" in answer.lower()
    slow.end()


@pytest.mark.fault("F10")
@pytest.mark.parametrize("slow", [(120, 0.0)], indirect=True)
def test_a_job_s_events_end_with_a_time_to_come_back(slow: SlowServer) -> None:
    job = slow.http.post("/improve", json={}).json()
    with slow.http.stream("GET", job["links"]["events"]) as answer:
        slow.signal()
        assert answer.read().endswith(b"retry: 2000\n\n")
    slow.end()


@pytest.mark.fault("F10")
def test_callers_who_go_on_get_nothing_but_images_and_503(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    server = Supervised(tmp_path / "home", model)
    runs.append(server)
    server.wait_ready().close()
    url, began, stop = server.addresses()[-1], threading.Barrier(33), threading.Event()

    def call(i: int) -> list[httpx2.Response]:
        """Call until nobody answers."""
        answers: list[httpx2.Response] = []
        with httpx2.Client(base_url=url, timeout=PATIENCE_S) as http:
            while True:
                try:
                    if i == 31:
                        answers.append(http.post("/codebooks/v0/activate"))
                    else:
                        answers.append(http.post("/generate", json={"prompt": "a cat"}, headers=ACCEPTS[i % 3]))
                except httpx2.TransportError:
                    assert stop.is_set()
                    return answers
                if len(answers) == 1:
                    began.wait(PATIENCE_S)

    with ThreadPoolExecutor(32) as callers:
        calls = [callers.submit(call, i) for i in range(32)]
        began.wait(PATIENCE_S)
        stop.set()
        assert server.end(signal.SIGTERM) == 0, server.output
        answers = [answer for each in calls for answer in each.result()]
    for answer in answers:
        if answer.status_code != 200:
            check_refused(answer)
    assert "Traceback" not in server.output


@pytest.mark.fault("F10")
def test_a_supervisor_passes_a_second_signal_on(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model, SAFECB_DRAIN_S="600")
    runs.append(run)
    with run.wait_ready() as http, raw(run.addresses()[-1]) as caller:
        caller.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        wait_for("its body is waited for", lambda: http.get("/health/live").status_code == 200)
        run.process.send_signal(signal.SIGINT)
        wait_for("the server stops", lambda: http.get("/health/ready").status_code == 503)
        began = time.monotonic()
        assert run.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < SOON_S
        assert everything(caller).startswith(b"HTTP/1.1 503 ")
    assert "safecb serve was ended by SIGINT" in run.output.splitlines()[-1]
    # A worker, the least of all by nice, may be killed before it comes to its signal.
    assert "Traceback" not in run.output and "server does not end" not in run.output


@pytest.mark.fault("F13")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads(model: Path, tmp_path: Path, runs: list[Supervised], number: int) -> None:
    endless = tmp_path / "model"
    endless.mkdir()
    os.mkfifo(endless / "config.json")  # reading it takes for ever
    run = Supervised(tmp_path / "home", endless)
    runs.append(run)
    wait_for("the server answers", lambda: "Application startup complete" in run.output)
    began = time.monotonic()
    assert run.end(number) == 0
    assert time.monotonic() - began < SOON_S
    assert "killed" not in run.output and "Traceback" not in run.output
    assert f"safecb serve was ended by {signal.Signals(number).name}" in run.output.splitlines()[-1]


@pytest.mark.fault("F13")
def test_the_last_line_names_a_port_that_is_taken(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        run = Supervised(tmp_path / "home", model, SAFECB_PORT=port, SAFECB_DRAIN_S="0")
        runs.append(run)
        assert run.process.wait(PATIENCE_S) == HOPELESS
    last = run.output.splitlines()[-1]
    assert "safecb serve ends, since its server cannot start: SAFECB_HOST, SAFECB_PORT" in last
    assert port in last and "Address already in use" in last
    assert "starts again" not in run.output


@pytest.mark.fault("F13")
def test_a_signal_while_another_supervisor_has_the_home(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    run.child("redis-server")
    second = Supervised(tmp_path / "home", model)
    runs.append(second)
    lock = tmp_path / "home" / "redis" / ".lock"
    wait_for(
        "it waits for the lock", lambda: str(lock) in [f.path for f in psutil.Process(second.process.pid).open_files()]
    )
    assert second.end(signal.SIGTERM) == 0
    assert "safecb serve was ended by SIGTERM" in second.output.splitlines()[-1]
    assert run.process.poll() is None
