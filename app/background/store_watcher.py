"""Store watcher: polls the store's active record four times a second, and immediately on a hint from Redis.

The hint only saves time. Without Redis, or with a lost hint, the next poll finds the same.
"""

from __future__ import annotations

import logging
from threading import Event
from time import monotonic

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError

from codebook.live import LiveCodebooks
from core.settings import Settings
from core.wire import RedisNames

log = logging.getLogger(__name__)

POLL_EVERY_S = 0.25
RECONNECT_EVERY_S = 1.0


def follow(live: LiveCodebooks, settings: Settings, ended: Event) -> None:
    """Keep `live` at the store's active version until `ended`: the body of a thread.

    Not a task of the event loop: there a hint would wait for the loop, and then for a thread.
    """
    hints, last_error = _Hints(settings, ended), None
    while not ended.is_set():
        if live.refresh():
            log.info("codebook %s is active, epoch %d", live.active.version, live.active.epoch)
        if live.last_error not in (None, last_error):
            log.error(
                "codebook %s draws here, not the active one of the store: %s", live.active.version, live.last_error
            )
        last_error = live.last_error
        hints.wait()
    hints.close()


class _Hints:
    """Subscription to the hint channel; without Redis, only a timer."""

    def __init__(self, settings: Settings, ended: Event) -> None:
        self._url, self._name, self._ended = settings.redis_url, RedisNames.of(settings).hints, ended
        self._channel: PubSub | None = None
        self._tried = -RECONNECT_EVERY_S

    def wait(self) -> None:
        """Return at the next hint, or after POLL_EVERY_S."""
        try:
            channel = self._connected()
            if channel is not None:
                channel.get_message(ignore_subscribe_messages=True, timeout=POLL_EVERY_S)
                return
        except (RedisError, OSError):
            self.close()
        self._ended.wait(POLL_EVERY_S)

    def close(self) -> None:
        """Unsubscribe."""
        if self._channel is not None:
            self._channel.close()
            self._channel.connection_pool.disconnect()
            self._channel = None

    def _connected(self) -> PubSub | None:
        if self._channel is None and self._url is not None and monotonic() - self._tried >= RECONNECT_EVERY_S:
            self._tried = monotonic()
            self._channel = Redis.from_url(self._url, socket_connect_timeout=RECONNECT_EVERY_S).pubsub()
            self._channel.subscribe(self._name)
        return self._channel
