"""Test of a bucket before it is trusted: creations race each other, and more than one winner shows a server unfit.

Several S3 servers ignore the condition of a create, or check it before they write and not while they do. On them two
servers would publish different versions of one name.

Knows a bucket. Knows nothing of what is stored there.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from core.bucket.bucket import Bucket
from core.errors import BadSetting

RACERS = 8
RACES = 6


def check_races(bucket: Bucket) -> None:
    """Raise BadSetting, naming the bucket, unless each object that many create simultaneously has one creator."""
    folder = f"race/{secrets.token_hex(8)}"
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(RACES):
            key = f"{folder}/{number}"
            winners = _winners(bucket, key, pool)
            again = bucket.create(key, secrets.token_bytes(16))  # and long after
            bucket.delete(key)
            if winners != 1 or again:
                allowed = (
                    "an S3 server on which one of several simultaneous creations wins (If-None-Match: *); "
                    f"here {winners + again} of {RACERS + 1} did"
                )
                raise BadSetting("SAFECB_STORE", bucket.url, allowed)


def _winners(bucket: Bucket, key: str, pool: ThreadPoolExecutor) -> int:
    """How many of the racers were answered that they had created the object."""
    line = Barrier(RACERS)

    def race(data: bytes) -> bool:
        line.wait()
        return bucket.create(key, data)

    return sum(pool.map(race, [secrets.token_bytes(16) for _ in range(RACERS)]))
