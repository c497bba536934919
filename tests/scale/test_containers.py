"""The Compose file as it stands, run by podman: HAProxy, two servers, a worker, Redis and S3, each a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.support.servers.callers import LOST, Callers, client, drawn, is_ready
from tests.support.servers.compose import environ_of
from tests.support.servers.containers import Containers, composed
from tests.support.serving import wait_for as wait_closely
from tests.support.supervised import ROOT

PORT = "127.0.0.1"  # where the file opens HAProxy's port 8000
PUBLISH = (
    "import os; from codebook.store import CodebookStore; from core.settings import Settings;"
    "from tests.support.serving import publish;"
    "print(publish(CodebookStore.of(Settings.from_environ(os.environ)), 1).version)"
)
FOLLOWED_S = 1.0
wait_for = partial(wait_closely, every_s=0.3)  # who looks takes time from those who draw


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    with composed(tmp_path) as containers:
        yield containers


def test_the_compose_file_draws_moves_loses_a_server_and_stops(containers: Containers, tmp_path: Path) -> None:
    began = time.monotonic()
    with client(PORT) as proxy, client(containers.address("one")) as one, client(containers.address("two")) as two:
        wait_for("the servers are ready", lambda: is_ready(one) and is_ready(two))
        wait_for("HAProxy knows a server", lambda: is_ready(proxy))
        figures = {"ready_s": time.monotonic() - began}
        assert [name for name in ("one", "two", "redis", "s3") if not containers.is_healthy(name)] == []
        calls = [proxy.post("/generate", json={"prompt": "a red apple", "seed": seed}) for seed in range(6)]
        assert [call.status_code for call in calls] == [200] * 6 and min(drawn(one), drawn(two)) > 0
        figures["followed_s"] = _activate(publish(containers, tmp_path), one, two)
        same = [http.post("/generate", json={"prompt": "a dog", "seed": 5}).json()["images"][0] for http in (one, two)]
        assert same[0] == same[1]
        _do_a_job(proxy, one)
        figures |= _kill(containers)
    with client(containers.address("two")) as two:
        figures |= _stop(containers, two)
    codes = containers.stop(*containers.services)
    print({name: round(value, 2) for name, value in figures.items()}, codes)
    assert (codes["one"], codes["two"], codes["redis"]) == (0, 0, 0) and codes["worker"] in (0, 143), codes


def publish(containers: Containers, home: Path) -> str:
    """Publish a version into the bucket of the containers, and return its name."""
    own = environ_of(containers.services["one"]) | {"SAFECB_HOME": str(home / "publisher")}
    own |= {"AWS_ENDPOINT_URL": f"http://{containers.address('s3')}:8333"}
    own.pop("SAFECB_REDIS_URL")
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH], cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _activate(version: str, one: httpx2.Client, two: httpx2.Client) -> float:
    """Activate a version at one server; the seconds until both draw under it, from the call on."""
    began = time.monotonic()
    one.post(f"/codebooks/{version}/activate").raise_for_status()
    for server in (two, one):
        wait_closely("it follows", partial(_is_active, server, version))
    followed_s = time.monotonic() - began
    assert followed_s <= FOLLOWED_S
    return followed_s


def _is_active(server: httpx2.Client, version: str) -> bool:
    return bool(server.get("/codebooks/active").json()["version"] == version)


def _do_a_job(proxy: httpx2.Client, one: httpx2.Client) -> None:
    """The worker takes a job that was begun through HAProxy, and ends it when a server is asked to."""
    job = proxy.post("/improve", json={}).json()["id"]
    wait_for("the worker has it", lambda: one.get(f"/jobs/{job}").json()["status"] == "running")
    one.delete(f"/jobs/{job}").raise_for_status()
    wait_for("it has ended", lambda: proxy.get(f"/jobs/{job}").json()["status"] == "cancelled")


def _kill(containers: Containers) -> dict[str, float]:
    """Kill a server's container under load: what it drew is lost, the other draws on, and it is started again."""
    callers, pid = Callers(PORT), containers.pid("two")
    with callers.calling():
        with client(containers.address("two")) as two:
            before = drawn(two)
            wait_for("it draws", lambda: drawn(two) > before + 1)
        os.kill(pid, signal.SIGKILL)
        count = callers.count
        wait_for("calls go on", lambda: callers.count > count + 8)
        wait_for("podman starts it again", lambda: containers.pid("two") not in (0, pid))
        with client(containers.address("two")) as two:
            wait_for("it is ready", lambda: is_ready(two))
            wait_for("it draws again", lambda: drawn(two) > 0)
    statuses = [status for _, status in callers.failed]
    assert set(statuses) <= {LOST, 502} and len(statuses) <= 4, statuses
    return {"kill: calls": callers.count, "kill: failed": len(statuses)}


def _stop(containers: Containers, two: httpx2.Client) -> dict[str, float]:
    """Stop a server under load: no call is lost."""
    callers = Callers(PORT)
    with callers.calling():
        before = drawn(two)
        wait_for("it draws", lambda: drawn(two) > before + 1)
        codes = containers.stop("two")
        count = callers.count
        wait_for("calls go on", lambda: callers.count > count + 4)
    statuses = [status for _, status in callers.failed]
    assert codes == {"two": 0} and statuses == [], (codes, statuses)
    return {"stop: calls": callers.count, "stop: failed": len(statuses)}
