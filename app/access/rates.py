"""Images that a key may draw in a time, counted by the `limits` library in this server's memory.

Knows keys and their rates. Knows nothing of queues: what passes may still be refused by a full one.
"""

from __future__ import annotations

import math
import time

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from app.access.key_ring import Holder
from core.errors import BadInput, Busy

NAME = "images"  # of the policy in RateLimit headers


class Rates:
    """The rates of one server. Thread-safe."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def take(self, holder: Holder, images: int) -> dict[str, str]:
        """Count images against the rate of a key, and return the headers that say what is left; none without a rate.

        The headers are those of the IETF's draft-ietf-httpapi-ratelimit-headers-10, and those that OpenAI's clients
        know. Raises Busy where the rate is used up, BadInput where it is below `images`.
        """
        name, rate = holder.name, holder.rate
        if rate is None:
            return {}
        limit = parse(rate)
        if images > limit.amount:
            raise BadInput("n", images, f"at most {limit.amount}: the key {name!r} may draw {rate}")
        passes = self._limiter.hit(limit, name, cost=images)
        reset, left = self._limiter.get_window_stats(limit, name)
        wait = max(1, math.ceil(reset - time.time()))
        if not passes:
            raise Busy(f"the key {name!r} may draw {rate} images; {left} are left", wait)
        return {
            "RateLimit-Policy": f'"{NAME}";q={limit.amount};w={limit.get_expiry()}',
            "RateLimit": f'"{NAME}";r={left};t={wait}',
            "x-ratelimit-limit-requests": str(limit.amount),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{wait}s",
        }
