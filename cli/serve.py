"""Supervisor of an embedded Redis, a worker and a server: keeps them alive until a signal, and ends them in order.

It has no state of its own: any process may die, the supervisor included, and the next start finds everything on disk.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from app.background.heap import ONE_HEAP
from cli.child import Child
from cli.redis_server import EmbeddedRedis
from core import logs
from core.errors import NoStorage, SafeCBError
from core.settings import Settings
from core.storage import naming
from core.wire import HOPELESS, SPINNING

log = logging.getLogger(__name__)

# Each thread of the server computes on one core unless engine/scheduler/thread_budget.py gives it more; variables that
# overrule the budget are removed.
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE"}
# How often a thread of OpenMP looks for work before it sleeps: long enough for the gaps within a step. Without a limit
# it goes on for milliseconds at every product while another process has the core of the thread that it waits for.
SERVER_SPINNING = {SPINNING[0]: "10000"}
OVERRULES = {"MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS", "OMP_THREAD_LIMIT"}
POLL_EVERY_S = 0.2
BEYOND_DRAIN_S = 10.0  # for a server to end in after its drain
MOST_LOG = 65536  # bytes of Redis' log that are read after its death


def main() -> int:
    """Supervise with the settings of the environment: 0 after a signal, 2 if a restart cannot help."""
    return run(children)


def run(make: Callable[[Settings, ExitStack], list[Child]]) -> int:
    """Supervise the children of `make`; exit codes as in `main`. The last log line has the reason of the end."""
    logs.configure("text")
    parts: list[Child] = []
    signals: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:  # must take no lock: this thread may hold it
        signals.append(signal.Signals(number))
        if not parts:  # there is nothing to end yet
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(settings.log)
        with ExitStack() as files:
            parts += make(settings, files)
            hopeless = supervise(parts, signals)
    except KeyboardInterrupt:
        hopeless = None
    except SafeCBError as error:
        log.error("safecb serve cannot start: %s", error)
        return HOPELESS
    if hopeless is not None:
        log.error("safecb serve ends, since its %s cannot start: %s", hopeless.name, hopeless.reason())
        return HOPELESS
    log.info("safecb serve was ended by %s; start it again at any time", signals[0].name)
    return 0


def children(settings: Settings, files: ExitStack) -> list[Child]:
    """Return the children in the order of starting; `files` keeps their logs open.

    Raises BadSetting if there is no Redis, Conflict if another supervisor has the folder.
    """
    environ = {**os.environ, "SAFECB_HOME": str(settings.home)}
    parts = []
    try:
        with naming(settings.home):
            parts += _workers(settings, environ, files)
    except NoStorage as error:
        what = "neither Redis nor a worker is started, and images alone are served: start again after that"
        log.error("SAFECB_HOME cannot be written: %s; %s", error.about(error.path), what)
    end_s = settings.drain_s + BEYOND_DRAIN_S
    parts.append(Child("server", lambda: [sys.executable, "-m", "app.server"], server_environ(environ), end_s=end_s))
    return parts


def _workers(settings: Settings, environ: dict[str, str], files: ExitStack) -> list[Child]:
    """Return the children that improve jobs need; `environ` gets the address of the queue."""
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    worker_log = files.enter_context((logs / "worker.log").open("ab"))
    parts = []
    if settings.redis_url is None:
        redis = EmbeddedRedis.prepare(settings.home)
        environ["SAFECB_REDIS_URL"] = redis.url
        parts.append(_redis(redis, environ, files, logs))
    return [*parts, Child("worker", lambda: [sys.executable, "-m", "worker.main"], environ, worker_log)]


def server_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the server; OMP_NUM_THREADS is the default of SAFECB_CORES."""
    inherited = {key: value for key, value in environ.items() if key not in OVERRULES}
    threads = environ.get("OMP_NUM_THREADS", "")
    cores = {"SAFECB_CORES": threads} if re.fullmatch("[1-9][0-9]{0,2}", threads) else {}
    return ONE_HEAP | SERVER_SPINNING | cores | inherited | ONE_CORE


def _redis(redis: EmbeddedRedis, environ: dict[str, str], files: ExitStack, logs: Path) -> Child:
    files.callback(os.close, redis.lock)

    log_file = files.enter_context((logs / "redis.log").open("a+b"))
    read = log_file.tell()

    def mourn(code: int) -> None:
        nonlocal read
        end = log_file.seek(0, os.SEEK_END)
        log_file.seek(max(read, end - MOST_LOG))
        text, read = log_file.read().decode(errors="replace"), end
        if code == 1:  # it could not start
            with suppress(OSError):  # the disk is not writable; the next start tries again
                redis.mend(text)

    return Child("redis", lambda: redis.command, environ, log_file, (redis.lock,), mourn, fault=redis.fault)


def supervise(parts: list[Child], signals: list[signal.Signals]) -> Child | None:
    """Keep the children alive until a signal (returns None) or until one is hopeless (returns it).

    signals: grows with every SIGTERM and SIGINT; the second one shortens the timeouts.
    """
    try:
        for child in parts:
            child.start()
        while not signals:
            for child in parts:
                if child.poll() == HOPELESS:
                    return child
            time.sleep(POLL_EVERY_S)
    finally:
        for child in reversed(parts):
            child.stop(hurry=lambda: len(signals) > 1)
    return None


if __name__ == "__main__":
    sys.exit(main())
