"""Image log of several machines: each has its own, and Redis lends what another one logged.

Redis may forget: then an image can be looked at and flagged only where it was drawn. Knows images as JSON in Redis.
Knows nothing of harm, pixels or HTTP.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from contextlib import suppress

from redis import RedisError

from core.errors import NotFound
from core.redis_client import open_redis
from records.image_log import HOUR_S, ImageMemory, KeptImage, Verdicts, pack, unpack

log = logging.getLogger(__name__)

MOST_HOURS = 1.0  # for which an image is lent: Redis holds the queue too, and must not fill up
PATIENCE_S = 0.5  # for which an image waits to be lent


class SharedImages:
    """The log `own`, and that of the other machines on the Redis at `url`, below `prefix`. Thread-safe."""

    def __init__(self, own: ImageMemory, url: str, prefix: str, hours: float) -> None:
        self._own, self._prefix, self._seconds = own, prefix, int(min(hours, MOST_HOURS) * HOUR_S)
        self._redis = open_redis(url, PATIENCE_S)

    def keep(self, images: Sequence[KeptImage]) -> None:
        """See ImageMemory; lent to the others for MOST_HOURS at most."""
        self._own.keep(images)
        if not self._own.is_on or not self._seconds:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for image in images:
                    pipeline.set(self._key(image.id), _encode(image), ex=self._seconds)
                pipeline.execute()
        except RedisError as error:
            log.info("images are remembered here alone, Redis does not take them: %s", error)

    def forget(self) -> None:
        """See ImageMemory; Redis forgets by itself."""
        self._own.forget()

    def get(self, id: str) -> KeptImage:
        """See ImageMemory: one of this machine, or of another."""
        try:
            return self._own.get(id)
        except NotFound:
            with suppress(RedisError):
                if (data := self._redis.get(self._key(id))) is not None:
                    return _decode(data)
            raise

    def verdicts(self, version: str) -> Verdicts:
        """See ImageMemory: those of this machine."""
        return self._own.verdicts(version)

    def _key(self, id: str) -> str:
        return f"{self._prefix}:{id}"


def _encode(image: KeptImage) -> bytes:
    tokens = base64.b64encode(pack(image.tokens)).decode()
    return json.dumps({**vars(image), "tokens": tokens}).encode()


def _decode(data: bytes) -> KeptImage:
    values = json.loads(data)
    return KeptImage(**{**values, "tokens": unpack(base64.b64decode(values["tokens"]))})
