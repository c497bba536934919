"""Windows of rates in Redis, so that all servers on it count together, and their number for when it is away.

Knows Redis and `limits`. Knows no keys of callers. Redis away is said once in the log; it is tried again later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import ConnectionPool, Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.wire import RATES

log = logging.getLogger(__name__)

PATIENCE_S = 0.25  # how long each of the two answers that a call needs may take
SEE_EVERY_S = 5.0
AWAY_S = 5.0  # after which a Redis that did not answer is tried again
SEEN_S = 60  # for which a server counts after it was last noted


class Window(NamedTuple):
    """A hit of a rate. reset: Unix seconds at which the window has moved on. left: images that still pass."""

    passes: bool
    reset: float
    left: int


def hit(limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, name: str, images: int) -> Window:
    """Count images against a limit, all of them or none."""
    passes = limiter.hit(limit, name, cost=images)
    return Window(passes, *limiter.get_window_stats(limit, name))


class SharedWindows:
    """The windows in the Redis at `url`, below `prefix`. Thread-safe; blocks for about twice PATIENCE_S.

    servers: how many servers have counted here lately, this one included.
    """

    def __init__(self, url: str, prefix: str = RATES, clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix, self._servers = prefix, f"{prefix}:servers"
        self._pool = ConnectionPool.from_url(
            url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
        )
        self._limiter: SlidingWindowCounterRateLimiter | None = None
        self._me, self._clock = uuid4().hex, clock
        self._away_until = self._seen_until = float("-inf")
        self._is_away = False
        self.servers = 1

    def hit(self, limit: RateLimitItem, name: str, images: int) -> Window | None:
        """Count images against a limit; None while Redis is away."""
        began = self._clock()
        if began < self._away_until:
            return None
        try:
            if self._limiter is None:  # its scripts are registered over a connection
                storage = RedisStorage("redis://", connection_pool=self._pool, key_prefix=self._prefix)
                self._limiter = SlidingWindowCounterRateLimiter(storage)
            window = hit(self._limiter, limit, name, images)
        except RedisError as error:
            self._leave(str(error))
            return None
        if self._clock() - began > PATIENCE_S:  # this call has waited, the next ones need not
            self._leave("it is slow")
        elif self._is_away:
            self._is_away = False
            log.warning("servers count rates together again")
        self._see()
        return window

    def _leave(self, reason: str) -> None:
        """Do without Redis for a while; said when it begins."""
        self._away_until = self._clock() + AWAY_S
        if not self._is_away:
            self._is_away = True
            log.warning("each server counts rates by itself while Redis is away: %s", reason)

    def close(self) -> None:
        """Close the connections."""
        self._pool.disconnect()

    def _see(self) -> None:
        """Note this server and count those that are noted, once in SEE_EVERY_S; times are Redis' own."""
        if self._clock() < self._seen_until:
            return
        self._seen_until = self._clock() + SEE_EVERY_S
        with suppress(RedisError), Redis(connection_pool=self._pool) as redis:
            now = redis.time()[0]
            with redis.pipeline(transaction=False) as pipeline:
                pipeline.zadd(self._servers, {self._me: now})
                pipeline.zremrangebyscore(self._servers, "-inf", now - SEEN_S)
                pipeline.zcard(self._servers)
                pipeline.expire(self._servers, SEEN_S)
                self.servers = int(pipeline.execute()[2])
