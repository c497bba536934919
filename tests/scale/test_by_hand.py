"""Several machines by hand: the commands of docs/how-to/several-machines.md as they stand, a host for each machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from cli.redis_server import find_program
from codebook.store import CodebookStore
from core.settings import Settings
from tests.support.servers.callers import LOST, Callers, client, drawn, is_ready
from tests.support.servers.network import HUB, NetworkHost, network
from tests.support.servers.s3 import moto, use
from tests.support.serving import PATIENCE_S, publish, wait_for
from tests.support.supervised import ROOT

PAGE = ROOT / "docs" / "how-to" / "several-machines.md"
COMMAND = re.compile(r"^(10\.77\.0\.\d)\$ (.*)$", re.MULTILINE)
FIRST, ONE, TWO, WORKER = (f"10.77.0.{number}" for number in (1, 2, 3, 4))  # 10.0.0.1 to 10.0.0.4 in the page
LOST_S = 40.0  # within which a call has ended whose server lost its power


class Machines:
    """Four machines with a folder each. start: runs the commands of one of them."""

    def __init__(self, folder: Path, hosts: list[NetworkHost], environ: dict[str, str]) -> None:
        self._folder, self._environ, self._running = folder, environ, dict[str, list[subprocess.Popen[bytes]]]()
        self._within: dict[str, tuple[str, ...]] = {FIRST: ()}
        self._within |= {address: host.within for address, host in zip((ONE, TWO, WORKER), hosts, strict=True)}
        page = PAGE.read_text().replace("10.0.0.", "10.77.0.")
        lines = COMMAND.findall(page)
        self.commands = {address: [text for name, text in lines if name == address] for address in self._within}
        for address in self._within:
            (folder / address).mkdir()
            (folder / address / "deploy").symlink_to(ROOT / "deploy")  # the clone that the page speaks of

    def make_keys(self) -> str:
        """Run the command that makes the keys, copy its file to the servers, and return the key."""
        text = self.commands[FIRST].pop(0)
        key = self._popen(FIRST, text, stderr=subprocess.PIPE).communicate(timeout=PATIENCE_S)[1].decode().strip()
        for address in (ONE, TWO):
            shutil.copy(self._folder / FIRST / "keys.toml", self._folder / address)
        return key

    def start(self, address: str) -> None:
        """Run the commands of a machine, all of which stay."""
        self._running[address] = [self._popen(address, text) for text in self.commands[address]]

    def kill(self, address: str) -> None:
        """End all processes of a machine without a word."""
        for process in self._running.pop(address):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Kill what runs."""
        for address in list(self._running):
            self.kill(address)

    def output(self, address: str) -> str:
        """What its processes have printed."""
        return (self._folder / address / "log").read_text()

    def _popen(self, address: str, text: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
        folder = self._folder / address
        programs = (str(Path(sys.executable).parent), str(find_program("").parent), os.environ["PATH"], "/usr/sbin")
        environ = {**os.environ, **self._environ, "PATH": ":".join(programs), "PYTHONPATH": str(ROOT)}
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*self._within[address], "bash", "-c", text],
                cwd=folder,
                env=environ,
                stdout=log,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )


def test_the_commands_of_the_page_draw_move_and_survive_a_machine(model: Path, tmp_path: Path) -> None:
    if not (shutil.which("haproxy") or Path("/usr/sbin/haproxy").exists()):
        pytest.skip("needs HAProxy: install Debian's package haproxy")
    with ExitStack() as stack:
        hosts = stack.enter_context(network(3))
        s3 = stack.enter_context(moto(HUB))
        use(stack.enter_context(pytest.MonkeyPatch.context()), s3.url)
        environ = {"SAFECB_STORE": s3.bucket(), "SAFECB_REDIS_URL": f"redis://:PASSWORD@{FIRST}:6379"}
        environ |= {"SAFECB_MODEL": str(model), "SAFECB_SECOND_JUDGE": "opennsfw", "SAFECB_CORES": "1"}
        machines = Machines(tmp_path, hosts, {**environ, "OMP_NUM_THREADS": "1"})
        stack.callback(machines.close)
        key = machines.make_keys()
        for address in (FIRST, ONE, TWO, WORKER):
            machines.start(address)
        proxy, one, two = (stack.enter_context(client(address, key)) for address in (FIRST, ONE, TWO))
        wait_for("all are ready", lambda: is_ready(one) and is_ready(two) and is_ready(proxy))
        assert httpx2.post(f"http://{FIRST}:8000/generate", json={"prompt": "a red apple"}).status_code == 401
        store = CodebookStore.of(Settings.from_environ({**environ, "SAFECB_HOME": str(tmp_path / "publisher")}))
        _move_and_follow(proxy, one, two, publish(store, 1).version)
        _do_a_job(proxy, one)
        _lose_power(hosts[1], two, key)
        _kill(machines, one, two, key)


def _move_and_follow(proxy: httpx2.Client, one: httpx2.Client, two: httpx2.Client, version: str) -> None:
    calls = [proxy.post("/generate", json={"prompt": "a red apple", "seed": seed}) for seed in range(8)]
    assert [call.status_code for call in calls] == [200] * 8 and min(drawn(one), drawn(two)) > 0
    one.post(f"/codebooks/{version}/activate").raise_for_status()
    began = time.monotonic()
    wait_for("the other one follows", lambda: two.get("/codebooks/active").json()["version"] == version)
    print({"the other server follows after s": round(time.monotonic() - began, 2)})
    same = [http.post("/generate", json={"prompt": "a dog", "seed": 5}).json()["images"][0] for http in (one, two)]
    assert same[0] == same[1]


def _do_a_job(proxy: httpx2.Client, one: httpx2.Client) -> None:
    """The worker takes a job that was begun through HAProxy, and ends it when one of the servers is asked to."""
    job = proxy.post("/improve", json={}).json()["id"]
    wait_for("the worker has it", lambda: one.get(f"/jobs/{job}").json()["status"] == "running")
    one.delete(f"/jobs/{job}").raise_for_status()
    wait_for("it has ended", lambda: proxy.get(f"/jobs/{job}").json()["status"] == "cancelled")


def _lose_power(host: NetworkHost, two: httpx2.Client, key: str) -> None:
    """A machine that falls silent costs the calls that it drew, and those end."""
    callers = Callers(FIRST, key)
    with callers.calling():
        before = drawn(two)
        wait_for("it draws", lambda: drawn(two) > before + 4)
        host.cut()
        cut = time.monotonic()
        time.sleep(LOST_S + 10)
        count = callers.count
        wait_for("calls go on", lambda: callers.count > count + 8)
        host.heal()
    ended = [(round(moment - cut, 1), status) for moment, status in callers.failed]
    print({"calls": callers.count, "failed": ended, "longest s": round(callers.longest_s, 1)})
    assert callers.longest_s < LOST_S and len(callers.failed) <= 4
    assert all(status in (LOST, 502, 504) and moment - cut < LOST_S for moment, status in callers.failed)
    wait_for("it is level", lambda: is_ready(two))


def _kill(machines: Machines, one: httpx2.Client, two: httpx2.Client, key: str) -> None:
    callers = Callers(FIRST, key)
    with callers.calling():
        before = drawn(one)
        wait_for("it draws", lambda: drawn(one) > before + 4)
        machines.kill(ONE)
        count = callers.count
        wait_for("calls go on", lambda: callers.count > count + 20)
        machines.start(ONE)
        wait_for("it is back", lambda: is_ready(one))
    print({"calls": callers.count, "failed": [status for _, status in callers.failed]})
    assert {status for _, status in callers.failed} <= {LOST, 502} and len(callers.failed) <= 4
