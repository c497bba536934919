"""Real Redis servers for a test: the embedded one, started as `safecb serve` starts it, and an operator's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import AuthenticationError, Redis, RedisError

from cli.redis_server import EmbeddedRedis, find_program
from tests.support.serving import wait_for

NO_MASTER = ("--replicaof", "127.0.0.1", "1")  # a replica of a server that is not there: read-only


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


@contextmanager
def own_redis(*options: str) -> Iterator[str]:
    """Run a redis-server with `options` in a folder of its own until the block ends; gives its address."""
    folder = Path(tempfile.mkdtemp(prefix="safecb-"))  # a socket's path must be short
    command = [str(find_program("")), "--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder)]
    process = subprocess.Popen([*command, "--save", "", *options], stdout=subprocess.DEVNULL)
    try:
        wait_for("Redis answers", lambda: answers(f"unix://{folder / 's'}"))
        yield f"unix://{folder / 's'}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def start(redis: EmbeddedRedis) -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    process = subprocess.Popen(redis.command, stdout=subprocess.DEVNULL, pass_fds=(redis.lock,))
    wait_for("Redis answers", lambda: answers(redis.url))
    return process


def answers(url: str) -> bool:
    """Whether the Redis at `url` answers, be it with an error of its own."""
    with Redis.from_url(url) as redis:
        try:
            return bool(redis.ping())
        except AuthenticationError:
            return True
        except RedisError:
            return False
