"""Follows the store: looks at its active record four times a second, and at once when Redis gives a hint.

The hint only saves time. Without Redis, or with a lost hint, the next look finds the same.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from codebook.live import LiveCodebooks

log = logging.getLogger(__name__)

HINT_CHANNEL = "safecb:codebook"
LOOK_EVERY_S = 0.25
RECONNECT_EVERY_S = 1.0


async def follow(live: LiveCodebooks, redis_url: str | None) -> None:
    """Keep `live` at the store's active version until cancelled."""
    hint = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        if redis_url is not None:
            tasks.create_task(_listen(redis_url, hint))
        last_error = None
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(hint.wait(), LOOK_EVERY_S)
            hint.clear()
            if await run_in_threadpool(live.refresh):
                log.info("codebook %s is active, epoch %d", live.active.version, live.active.epoch)
            if live.last_error not in (None, last_error):
                log.error("codebook %s stays: %s", live.active.version, live.last_error)
            last_error = live.last_error


async def _listen(url: str, hint: asyncio.Event) -> None:
    while True:
        try:
            async with Redis.from_url(url) as redis, redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(HINT_CHANNEL)
                async for _ in channel.listen():
                    hint.set()
        except (RedisError, OSError):
            await asyncio.sleep(RECONNECT_EVERY_S)
