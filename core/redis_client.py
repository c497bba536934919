"""Clients of Redis for calls that somebody waits for: one try, within a limit of time.

Knows how to connect. Knows nothing of what is kept there.
"""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def open_redis(url: str, patience_s: float) -> Redis[bytes]:
    """Return a client that gives up after `patience_s` seconds, to connect or for an answer, and tries nothing twice.

    It connects with its first command; what fails raises RedisError.
    """
    return Redis.from_url(
        url, socket_timeout=patience_s, socket_connect_timeout=patience_s, retry=Retry(NoBackoff(), 0)
    )
