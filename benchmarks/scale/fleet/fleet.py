"""Fleet: servers and workers with homes of their own on one bucket and one Redis, as processes of this machine.

The S3 server is moto's, with one write at a time. Knows processes and settings. Knows nothing of what is measured.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
from redis import Redis, RedisError

from benchmarks.scale.fleet.job import WORKER
from benchmarks.scale.fleet.line import Line
from cli.redis_server import find_program
from codebook.store import CodebookStore
from core.settings import Settings
from records.journal import Journal

SERVERS, WORKERS = 3, 2
PATIENCE_S = 300.0
ROOT = Path(__file__).parents[3]
KEY, CALL = "scale", "call-{}"  # names of keys, and the keys themselves
CREDENTIALS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
# moto looks for the object and then writes it, so that of two simultaneous creations both may succeed.
S3_SERVER = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main
put, one = S3Response.put_object, threading.Lock()
def put_object(self):
    with one:
        return put(self)
S3Response.put_object = put_object
main(sys.argv[1:])
"""


class Node:
    """A process with a home of its own, which can be killed and started again; its output is in `log`."""

    def __init__(self, command: Sequence[str], home: Path, environ: Mapping[str, str]) -> None:
        home.mkdir()
        self.home, self.log = home, home.with_suffix(".log")
        self._command = [sys.executable, *command]
        self._environ = {**os.environ, **environ, "SAFECB_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, which is not running."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        """Kill the process and those that it has started, as kill -9 does."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            family = [*parent.children(recursive=True), parent]
            for process in reversed(family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family[:-1], PATIENCE_S)
        self._process.wait()
        self._process = None


class ServerNode(Node):
    """A server at `url`."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(["-m", "app.server"], home, {"SAFECB_PORT": str(port), "SAFECB_CORES": "1", **environ})

    def is_ready(self) -> bool:
        """Whether the server can draw. Raises RuntimeError, with the end of its log, where its process has ended."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the server has ended: {self.log.read_text(encoding='utf-8')[-2000:]}")
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/health/ready", timeout=10).status_code == 200
        return False

    def wait_ready(self) -> None:
        """Wait until the server can draw."""
        wait_for(f"the server of {self.log} is ready", self.is_ready)


class RedisNode:
    """A Redis with an append-only file, on a socket in `folder`, whose path must be short."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._socket = folder, folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [str(find_program(os.environ.get("PATH", ""))), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--dir", str(self._folder), "--appendonly", "yes", "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for("Redis answers", self._answers)

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        with Redis.from_url(self.url) as redis, suppress(RedisError):
            return bool(redis.ping())
        return False


@dataclass(frozen=True)
class Fleet:
    """The machines of one deployment. line: between all machines and the bucket; None where there is none.

    settings: of this process, whose own line to the bucket is never cut.
    """

    servers: list[ServerNode]
    workers: list[Node]
    redis: RedisNode
    line: Line | None
    settings: Settings

    def store(self) -> CodebookStore:
        """Return this process' own view of the versions."""
        return CodebookStore.of(self.settings)

    def journal(self) -> Journal:
        """Return this process' own view of the jobs."""
        return Journal.of(self.settings)

    def client(self, number: int, key: str = KEY) -> httpx2.Client:
        """Return a client of a server, with a key."""
        return httpx2.Client(base_url=self.servers[number].url, timeout=PATIENCE_S, headers=headers(key))


def headers(key: str = KEY) -> dict[str, str]:
    """Return the headers of a caller with a key."""
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def fleet(folder: Path, *, has_line: bool, calls: int = 0) -> Iterator[Fleet]:
    """Run SERVERS servers, WORKERS workers, a Redis and an S3 server until the block ends.

    calls: number of keys beside KEY, named CALL, each for one call: the audit names them.
    """
    folder.mkdir()
    with ExitStack() as stack:
        port = stack.enter_context(s3_server())
        line = Line(port) if has_line else None
        direct = f"http://127.0.0.1:{port}"
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=direct)  # this process is one of the machines
        assert httpx2.put(f"{direct}/fleet").status_code == 200
        redis = RedisNode(folder)
        stack.callback(redis.stop)
        redis.start()
        same = {"SAFECB_STORE": "s3://fleet/codebooks", "SAFECB_REDIS_URL": redis.url, "SAFECB_DEVICE": "cpu"}
        same |= {"SAFECB_KEYS": str(_keys(folder, calls))}
        own = Settings.from_environ({**same, "SAFECB_HOME": str(folder / "own")})
        same |= {"AWS_ENDPOINT_URL": direct if line is None else line.url}
        servers = [ServerNode(folder / f"server-{n}", same) for n in range(SERVERS)]
        workers = [Node(["-c", WORKER], folder / f"worker-{n}", same) for n in range(WORKERS)]
        for node in (*servers, *workers):
            stack.callback(node.kill)
            node.start()
        with ThreadPoolExecutor(SERVERS) as pool:
            list(pool.map(ServerNode.wait_ready, servers))
        yield Fleet(servers, workers, redis, line, own)


@contextmanager
def s3_server() -> Iterator[int]:
    """Run an S3 server until the block ends; gives its port."""
    port = free_port()
    command = [sys.executable, "-c", S3_SERVER, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("the S3 server answers", lambda: _answers(port))
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for(what: str, true: Callable[[], object], patience_s: float = PATIENCE_S, every_s: float = 0.05) -> None:
    """Wait until `true()`. Raises TimeoutError."""
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(every_s)


def free_port() -> int:
    """Return a port that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _keys(folder: Path, calls: int) -> Path:
    """Write the file of keys."""
    names = {KEY: "admin"} | {CALL.format(n): "publish" for n in range(calls)}
    tables = [
        f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nscopes = ["{scope}"]\n'
        for name, scope in names.items()
    ]
    path = folder / "keys.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


def _answers(port: int) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"http://127.0.0.1:{port}", timeout=2).status_code < 500
    return False
