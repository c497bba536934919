"""Attacks on connections: silence, heads and bodies by the drop, more of them than the process has descriptors."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from app.http import body_limit as limits
from app.http import connections as protocol
from app.http.connections import Protocol, configured
from app.server import Server as StoppingServer
from app.server import address, bound
from tests.support.serving import PATIENCE_S, Server, everything, raw, serving, settings_in, wait_for
from tests.support.supervised import Supervised

FEW = 4
SOON_S = 20.0  # for an answer, on a busy machine


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.fault("F12")
def test_silent_sockets_keep_nobody_out(model: Path, tmp_path: Path, runs: list[Supervised]) -> None:
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    # Of the supervisor, long before it starts its server; this process itself has more files open at times.
    resource.prlimit(run.process.pid, resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with run.wait_ready() as http, ExitStack() as stack:
        silent = [stack.enter_context(raw(run.addresses()[-1])) for _ in range(300)]
        for _ in range(3):
            with httpx2.Client(base_url=http.base_url, timeout=SOON_S) as caller:
                assert caller.get("/health/live").status_code == 200
                assert caller.post("/generate", json={"prompt": "a cat"}).status_code == 200
        assert run.child("app.server").num_fds() < 256
        wait_for("all of them are closed", lambda: not any(map(is_open, silent)))
    assert "out of system resource" not in run.output and "Traceback" not in run.output


@pytest.mark.fault("F12")
@pytest.mark.parametrize("first", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_head_by_the_drop_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    with raw(server.url) as caller:
        caller.sendall(first + b"GET /health/live HTTP/1.1\r\nX: ")
        with pytest.raises(OSError):
            for _ in range(int(PATIENCE_S / 0.1)):
                caller.sendall(b"x")
                time.sleep(0.1)
    assert server.http.get("/health/live").status_code == 200


@pytest.mark.fault("F12")
def test_a_body_by_the_drop_is_answered_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_S", 1.0)
    with raw(server.url) as caller:
        caller.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(5):
            caller.sendall(b"{")
            time.sleep(0.1)
        answer = everything(caller)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"urn:safecb:problem:request-timeout" in answer


@pytest.mark.fault("F12")
def test_what_is_sent_after_an_answer_does_not_keep_a_connection(server: Server) -> None:
    with raw(server.url) as caller:  # the answer comes before the body
        caller.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(int(PATIENCE_S / 0.1)):
                caller.sendall(b"x")
                time.sleep(0.1)


@pytest.mark.fault("F12")
def test_the_longest_silence_makes_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.http.get("/health/live")
    monkeypatch.setattr(Protocol, "most", FEW)
    with ExitStack() as stack:
        silent = []
        for _ in range(3 * FEW):
            silent.append(stack.enter_context(raw(server.url)))
            time.sleep(0.01)  # so that one of them is the oldest
        wait_for("all but a few are closed", lambda: sum(map(is_open, silent)) == FEW)
        assert all(map(is_open, silent[-FEW:]))


@pytest.mark.fault("F12")
def test_health_has_room_where_everybody_is_busy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for("nobody else is there", lambda: not server.connections)
    monkeypatch.setattr(Protocol, "most", FEW)
    monkeypatch.setattr(protocol, "HEALTH_ROOM", 2)
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(FEW):
            stack.enter_context(raw(server.url)).sendall(head)
        wait_for("all are waited for", lambda: sum(c.cycle is not None for c in server.connections) == FEW)
        with httpx2.Client(base_url=server.url, timeout=PATIENCE_S) as late:
            assert late.get("/health/ready").status_code == 200
            answer = late.get("/codebooks")
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            assert int(answer.headers["Retry-After"]) >= 1 and "connections" in answer.json()["detail"]
            assert late.get("/health/live").status_code == 200
        crowd = [stack.enter_context(raw(server.url)) for _ in range(4)]
        for caller in crowd:
            with suppress(OSError):  # some have made room for the next one
                caller.sendall(head)
        wait_for("the crowd is refused", lambda: len(server.connections) == FEW)
    with httpx2.Client(base_url=server.url) as later:
        wait_for("there is room again", lambda: len(server.connections) == 0)
        assert later.get("/codebooks").status_code == 200


@pytest.mark.fault("F13")
def test_connections_that_a_stop_finds_in_the_kernel_are_answered(server: Server, tmp_path: Path) -> None:
    settings, count = settings_in(tmp_path, tmp_path), 40

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        """Any app: an empty answer to each request."""
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    async def stopped() -> list[bytes]:
        """The first bytes of each answer: all callers have connected, and none is accepted, when the server closes."""
        with bound(settings) as listener, ExitStack() as stack:
            stopping = StoppingServer(configured(answers), server.service)
            stopping.config.load()
            stopping.lifespan = stopping.config.lifespan_class(stopping.config)
            await stopping.startup([listener])
            callers = [stack.enter_context(raw(address(listener))) for _ in range(count)]
            for caller in callers:
                caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await stopping.shutdown([listener])
            return [caller.recv(12) for caller in callers]

    assert asyncio.run(stopped()) == [b"HTTP/1.1 204"] * count
