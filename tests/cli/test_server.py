"""Two servers of one home behind a real HAProxy: any of them answers for the other, and one may stop or die."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest

from codebook.store import CodebookStore
from tests.support.redis_home import own_redis
from tests.support.serving import PATIENCE_S, publish, wait_for
from tests.support.supervised import ROOT

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
COMPOSE = ROOT / "deploy" / "compose"

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="needs HAProxy")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class One:
    """`safecb server` as a process of its own."""

    def __init__(self, home: Path, model: Path, redis: str) -> None:
        self.port = free_port()
        own = {"SAFECB_HOME": str(home), "SAFECB_MODEL": str(model), "SAFECB_PORT": str(self.port)}
        own |= {"SAFECB_REDIS_URL": redis, "SAFECB_CORES": "1", "SAFECB_SECOND_JUDGE": "opennsfw"}
        own |= {"SAFECB_TRUSTED_PROXIES": "127.0.0.1"}
        with (home.parent / f"{self.port}.log").open("ab") as log:
            command = [sys.executable, "-m", "cli.main", "server"]
            self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=log)
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def drawn(self) -> int:
        """Images that it has drawn."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("safecb_images_total{"))


@pytest.fixture
def servers(model: Path, tmp_path: Path) -> Iterator[list[One]]:
    home = tmp_path / "home"
    home.mkdir()
    with own_redis() as redis:
        pair = [One(home, model, redis) for _ in range(2)]
        try:
            wait_for("both are ready", lambda: all(one.is_ready() for one in pair))
            yield pair
        finally:
            for one in pair:
                one.process.kill()
                one.process.wait()
                one.http.close()


@pytest.fixture
def proxy(servers: list[One], tmp_path: Path) -> Iterator[httpx2.Client]:
    port, (one, two) = free_port(), servers
    places = {"BIND": f"127.0.0.1:{port}", "SERVER_ONE": f"127.0.0.1:{one.port}", "SERVER_TWO": f"127.0.0.1:{two.port}"}
    with (tmp_path / "haproxy.log").open("wb") as log:
        command = [str(HAPROXY), "-f", str(COMPOSE / "haproxy.cfg")]
        process = subprocess.Popen(command, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
            wait_for("HAProxy answers", lambda: answers(http))
            yield http
    finally:
        process.kill()
        process.wait()


def answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


def draw(http: httpx2.Client, number: int, **body: object) -> httpx2.Response:
    return http.post("/generate", json={"prompt": f"a red apple {number}", "seed": number, **body})


@needs_haproxy
def test_servers_of_one_home_answer_for_each_other(servers: list[One], proxy: httpx2.Client, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as callers:
        answers = [answer.status_code for answer in callers.map(lambda i: draw(proxy, i), range(18))]
    shares = [one.drawn() for one in servers]
    assert answers == [200] * 18 and sum(shares) == 18 and min(shares) > 0  # the fewest open requests
    image = draw(servers[0].http, 99).json()["images"][0]["id"]
    assert [one.http.get(f"/images/{image}").status_code for one in servers] == [200, 200]
    assert servers[1].http.post("/flags", json={"image_id": image}).status_code == 201
    assert [len(one.http.get("/flags").json()) for one in servers] == [1, 1]
    job = proxy.post("/improve", json={}).json()["id"]
    assert [one.http.get(f"/jobs/{job}").json()["id"] for one in servers] == [job, job]
    assert servers[1].http.post("/improve", json={}).status_code == 409  # one job at a time, wherever it was asked for
    version = publish(CodebookStore(tmp_path / "home" / "store"), 1).version
    servers[0].http.post(f"/codebooks/{version}/activate", json={}).raise_for_status()
    wait_for("the other one follows", lambda: servers[1].http.get("/codebooks/active").json()["version"] == version)
    same = [draw(one.http, 5).json()["images"][0]["b64_png"] for one in servers]
    assert same[0] == same[1]


@needs_haproxy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_call_fails_twice_while_a_server_stops(servers: list[One], proxy: httpx2.Client, number: int) -> None:
    ended, failed = Event(), list[Any]()

    def call(caller: int) -> int:
        count = 0
        with httpx2.Client(base_url=proxy.base_url, timeout=PATIENCE_S) as http:
            while not ended.is_set():
                answer = draw(http, caller)
                if answer.status_code == 503:  # HAProxy's retries may all meet the server that stops; clients retry too
                    time.sleep(float(answer.headers["Retry-After"]))
                    answer = draw(http, caller)
                failed.extend([answer.text] if answer.status_code != 200 else [])
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, i) for i in range(4)]
        wait_for("both draw", lambda: min(one.drawn() for one in servers) > 2)
        servers[0].process.send_signal(number)
        assert servers[0].process.wait(PATIENCE_S) == 0
        before = servers[1].drawn()
        wait_for("the other one goes on", lambda: servers[1].drawn() > before + 4)
        ended.set()
    assert failed == [] and sum(caller.result() for caller in callers) > 8


@needs_haproxy
def test_a_server_that_dies_is_passed_over(servers: list[One], proxy: httpx2.Client) -> None:
    servers[0].process.kill()
    servers[0].process.wait()
    assert [draw(proxy, i).status_code for i in range(6)] == [200] * 6
