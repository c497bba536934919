"""Tallies of verdicts for the CUSUM of a version: in the memory of one server, or in Redis for all of them.

Redis may forget: then counting begins anew, and while it is away nothing is counted. Knows keys and units as texts.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol, cast

from redis import RedisError, WatchError
from redis.client import Pipeline

from codebook.trials.cusum import Cusum
from core.redis_client import open_redis

log = logging.getLogger(__name__)

REMEMBERED = 10_000  # units of a version that do not count again
EXPIRY_S = 30 * 24 * 3600  # after the last image
PATIENCE_S = 0.5
FIELDS = ("images", "unsafe", "sum", "alert")


class Tally(Protocol):
    """States by version."""

    def count(self, key: str, unit: str, unsafe: bool) -> Cusum | None:
        """Take in an image of a unit, unless the unit was counted, and return the state; None if it is not known."""

    def read(self, key: str) -> Cusum | None:
        """Return the state; None if it is not known."""

    def close(self) -> None:
        """Close the connections."""


class OwnTally:
    """The tally of one server, which begins anew with it and with every other version. For one thread that counts."""

    def __init__(self) -> None:
        self._key, self._state = "", Cusum()
        self._units: OrderedDict[str, None] = OrderedDict()

    def count(self, key: str, unit: str, unsafe: bool) -> Cusum:
        """See Tally."""
        if key != self._key:
            self._key, self._state, self._units = key, Cusum(), OrderedDict()
        if unit not in self._units:
            self._units[unit] = None
            self._state = self._state.seen(unsafe)
            if len(self._units) > REMEMBERED:
                self._units.popitem(last=False)
        return self._state

    def read(self, key: str) -> Cusum | None:
        """See Tally."""
        return self._state if key == self._key else None

    def close(self) -> None:
        """See Tally."""


class SharedTally:
    """The tally of all servers on the Redis at `url`, below `prefix`. Thread-safe; errors of Redis are logged."""

    def __init__(self, url: str, prefix: str) -> None:
        self._prefix = prefix
        self._redis = open_redis(url, PATIENCE_S)

    def count(self, key: str, unit: str, unsafe: bool) -> Cusum | None:
        """See Tally. Where another server has counted meanwhile, this one reads again."""
        names = f"{self._prefix}:{key}", f"{self._prefix}:{key}:units"
        try:
            with self._redis.pipeline() as pipeline:
                while True:
                    with suppress(WatchError):
                        return self._count(pipeline, *names, unit, unsafe)
        except RedisError as error:
            log.info("a verdict is not counted, Redis does not take it: %s", error)
            return None

    def _count(self, pipeline: Pipeline[bytes], name: str, units: str, unit: str, unsafe: bool) -> Cusum:
        pipeline.watch(name, units)
        state = _state(pipeline.hmget(name, FIELDS))
        if pipeline.zscore(units, unit) is not None:
            return state
        state = state.seen(unsafe)
        pipeline.multi()
        pipeline.hset(
            name,
            mapping={
                "images": state.images,
                "unsafe": state.unsafe,
                "sum": state.sum,
                "alert": int(state.alert),
            },
        )
        pipeline.zadd(units, {unit: state.images})
        pipeline.zremrangebyrank(units, 0, -REMEMBERED - 1)
        for each in (name, units):
            pipeline.expire(each, EXPIRY_S)
        pipeline.execute()
        return state

    def read(self, key: str) -> Cusum | None:
        """See Tally."""
        try:
            return _state(self._redis.hmget(f"{self._prefix}:{key}", FIELDS))
        except RedisError as error:
            log.info("verdicts of all servers are not known, Redis does not answer: %s", error)
            return None

    def close(self) -> None:
        """See Tally."""
        self._redis.close()


def _state(values: object) -> Cusum:
    """The state of a hash in Redis; a field that is not there is 0."""
    images, unsafe, total, alert = (float(value or 0) for value in cast("list[bytes | None]", values))
    return Cusum(int(images), int(unsafe), total, bool(alert))
