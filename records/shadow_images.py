"""Live images that servers lend to a shadow job, in a list in Redis: the newest MOST of the last hour.

Redis may forget them: then the job waits for others. Units that were taken stand beside the list, so that no attempt
takes one again. Knows images as JSON in Redis. Knows nothing of what the job does.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from redis import RedisError
from torch import Tensor

from core.redis_client import open_redis
from records.image_log import pack, unpack

log = logging.getLogger(__name__)

MOST = 512  # images in the list
EXPIRY_S = 3600
TAKEN_EXPIRY_S = 24 * 3600  # longer than a comparison lasts
PATIENCE_S = 1.0

# In one step, or a process that dies between two of them would let a unit be taken twice.
_TAKE = """
local fresh = {}
for _, row in ipairs(redis.call('LPOP', KEYS[1], ARGV[1]) or {}) do
  if redis.call('SADD', KEYS[2], cjson.decode(row).unit) == 1 then
    fresh[#fresh + 1] = row
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return fresh
"""


@dataclass(frozen=True, eq=False)
class LiveImage:
    """One image as a caller got it. unit: a hash of caller and prompt. tokens: [N] int64.

    version: the active one, which drew it. unsafe: the model's own verdict there; None without one. The job asks anew.
    """

    unit: str
    version: str
    prompt: str
    seed: int
    guidance: float
    temperature: float
    top_k: int
    unsafe: bool | None
    tokens: Tensor
    top_p: float = 1.0


class ShadowList:
    """The lists of the Redis at `url`, below `prefix`, one for each job. Thread-safe; errors of Redis are logged."""

    def __init__(self, url: str, prefix: str) -> None:
        self._prefix = prefix
        self._redis = open_redis(url, PATIENCE_S)
        self._take = self._redis.register_script(_TAKE)

    def lend(self, job: str, image: LiveImage) -> None:
        """Append an image to the list of a job."""
        tokens = base64.b64encode(pack(image.tokens)).decode()
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.rpush(self._key(job), json.dumps({**vars(image), "tokens": tokens}))
                pipeline.ltrim(self._key(job), -MOST, -1)
                pipeline.expire(self._key(job), EXPIRY_S)
                pipeline.execute()
        except RedisError as error:
            log.info("an image is not compared, Redis does not take it: %s", error)

    def take(self, job: str, most: int) -> Sequence[LiveImage]:
        """Remove the oldest images of a job's list, at most so many, and return those of units not taken before.

        None while Redis is away.
        """
        try:
            rows = self._take(keys=[self._key(job), self._taken(job)], args=[most, TAKEN_EXPIRY_S])
        except RedisError as error:
            log.info("no images to compare, Redis does not answer: %s", error)
            return []
        images = [json.loads(row) for row in rows]
        return [LiveImage(**{**image, "tokens": unpack(base64.b64decode(image["tokens"]))}) for image in images]

    def clear(self, job: str) -> None:
        """Remove the list of a job, and what it has taken."""
        try:
            self._redis.delete(self._key(job), self._taken(job))
        except RedisError as error:
            log.info("the images of job %s expire by themselves: %s", job, error)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _key(self, job: str) -> str:
        return f"{self._prefix}:{job}"

    def _taken(self, job: str) -> str:
        return f"{self._key(job)}:taken"
