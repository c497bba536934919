"""Hints through Redis: servers, poll the store now. They only save time: without one the next poll finds the same.

Knows the channel. Knows nothing of what has changed.
"""

from __future__ import annotations

import logging

from redis import Redis
from redis.exceptions import RedisError

from core.errors import NoStorage
from core.settings import Settings
from core.wire import RedisNames

log = logging.getLogger(__name__)


def send_hint(settings: Settings, version: str) -> None:
    """Hint all servers that `version` was published or moved; without Redis, and while it is away, nothing is sent."""
    if settings.redis_url is None:
        return
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=1.0, socket_connect_timeout=1.0) as redis:
            redis.publish(RedisNames.of(settings).hints, version)
    except (RedisError, NoStorage) as error:
        log.warning("no hint for %s: %s", version, error)
