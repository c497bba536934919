"""Images that a key may draw in a time, counted by all servers on one Redis together.

While Redis is away each server counts in its memory, against its share of the rate. Knows keys and their rates. Knows
nothing of queues: what passes may still be refused by a full one.
"""

from __future__ import annotations

import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Holder
from app.access.shared_windows import SharedWindows, Window, hit
from core.errors import BadInput, Busy
from core.wire import RATES

NAME = "images"  # of the policy in RateLimit headers


class Rates:
    """The rates of one server; redis_url: where servers count together, below `prefix`; None to count alone."""

    def __init__(self, redis_url: str | None = None, prefix: str = RATES) -> None:
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if redis_url is None else SharedWindows(redis_url, prefix)

    async def take(self, holder: Holder, images: int, field: str = "n") -> dict[str, str]:
        """Count images against the rate of a key, and return the headers that say what is left; none without a rate.

        The headers are those of the IETF's draft-ietf-httpapi-ratelimit-headers-10, and those that OpenAI's clients
        know. Raises Busy where the rate is used up, BadInput, naming `field`, where the key may never draw so many
        together.
        """
        if holder.queue is not None and images > holder.queue:
            raise BadInput(field, images, f"at most {holder.queue}: no more of the key {holder.name!r} may wait")
        name, rate = holder.name, holder.rate
        if rate is None:
            return {}
        limit = parse(rate)
        if images > limit.amount:
            raise BadInput(field, images, f"at most {limit.amount}: the key {name!r} may draw {rate}")
        window, limit = await run_in_threadpool(self._window, limit, name, images)
        wait = max(1, math.ceil(window.reset - time.time()))
        if not window.passes:
            raise Busy(f"the key {name!r} may draw {rate} images; {window.left} are left", wait)
        return {
            "RateLimit-Policy": f'"{NAME}";q={limit.amount};w={limit.get_expiry()}',
            "RateLimit": f'"{NAME}";r={window.left};t={wait}',
            "x-ratelimit-limit-requests": str(limit.amount),
            "x-ratelimit-remaining-requests": str(window.left),
            "x-ratelimit-reset-requests": f"{wait}s",
        }

    def close(self) -> None:
        """Close the connections."""
        if self._shared is not None:
            self._shared.close()

    def _window(self, limit: RateLimitItem, name: str, images: int) -> tuple[Window, RateLimitItem]:
        """A hit, and the limit that it was counted against: while Redis is away this server's share."""
        if self._shared is None:
            return hit(self._own, limit, name, images), limit
        if (shared := self._shared.hit(limit, name, images)) is not None:
            return shared, limit
        share = type(limit)(max(1, limit.amount // self._shared.servers), limit.multiples)
        # A call of more images than a share takes the whole of it, or it would never pass.
        return hit(self._own, share, name, min(images, share.amount)), share
