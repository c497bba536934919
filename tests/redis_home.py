"""A real Redis for a test, started as `safecb serve` starts it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.queue import ImproveQueue
from app.redis_server import EmbeddedRedis
from tests.serving import wait_for


@contextmanager
def embedded_redis(home: Path) -> Iterator[EmbeddedRedis]:
    """Run an embedded Redis in `home` until the block ends."""
    redis = EmbeddedRedis.prepare(home)
    process = start(redis)
    try:
        yield redis
    finally:
        process.terminate()
        process.wait()
        os.close(redis.lock)


def start(redis: EmbeddedRedis) -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    process = subprocess.Popen(redis.command, stdout=subprocess.DEVNULL, pass_fds=(redis.lock,))
    queue = ImproveQueue(redis.url)
    wait_for("Redis answers", queue.answers)
    queue.close()
    return process
