"""Answers by Idempotency-Key of several machines: each has its file, and Redis says what another one has answered.

Redis may be away: then a request that is sent again to another machine is done again. Knows answers as JSON in Redis.
Knows nothing of HTTP beyond a status, headers and bytes.
"""

from __future__ import annotations

import base64
import json
import logging
from uuid import uuid4

from redis import RedisError

from core.redis_client import open_redis
from core.settings import Settings
from core.wire import RedisNames
from records.answers import Answer, AnswerLog, Answers, being_answered, check_same

log = logging.getLogger(__name__)

SHARED_S = 3600  # for which Redis has an answer: it holds the queue too, and must not fill up
SHARED_BYTES = 64 * 2**20  # of all answers in Redis; the oldest go first
PATIENCE_S = 0.5  # for which a request waits for Redis
CLAIM_S = 30  # after which a request may begin again whose server has not renewed its claim

# KEYS[1]: the key. ARGV[1]: the claim of this process, which another one may have taken since.
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('EXPIRE', KEYS[1], ARGV[2]) end"
_DROP = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
# KEYS[2]: a sorted set of "SIZE KEY" by time.
_KEEP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
local now, total = redis.call('TIME')[1], 0
redis.call('ZADD', KEYS[2], now, #ARGV[2] .. ' ' .. KEYS[1])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
for _, entry in ipairs(redis.call('ZREVRANGE', KEYS[2], 0, -1)) do
  local size, key = entry:match('^(%d+) (.*)$')
  total = total + size
  if total > tonumber(ARGV[4]) then
    redis.call('ZREM', KEYS[2], entry)
    redis.call('DEL', key)
  end
end
"""


class SharedAnswers:
    """The answers `own`, and those of the other machines on the Redis at `url`, below `prefix`. Thread-safe."""

    def __init__(self, own: Answers, url: str, prefix: str) -> None:
        self._own, self._prefix, self._process = own, prefix, uuid4().hex
        self._claims = dict[str, str]()  # by key, of the requests that are being answered here
        self._redis = open_redis(url, PATIENCE_S)

    def begin(self, key: str, request: str) -> Answer | None:
        """See Answers; the request is claimed among all machines, for CLAIM_S or until it is renewed."""
        if (answer := self._own.begin(key, request)) is not None:
            return answer
        try:
            answer = self._claim(key, request)
        except RedisError as error:
            log.warning("a request is done once on this machine alone, Redis does not answer: %s", error)
            return None
        except BaseException:
            self._own.drop(key)
            raise
        if answer is not None:
            self._own.drop(key)
        return answer

    def renew(self, key: str) -> None:
        """Keep the claim on a request that is still being answered."""
        self._run(_RENEW, key, CLAIM_S)

    def keep(self, key: str, answer: Answer) -> None:
        """See Answers; in Redis for SHARED_S and within SHARED_BYTES."""
        self._own.keep(key, answer)
        if (claim := self._claims.get(key)) is not None:
            body = base64.b64encode(answer.body).decode()
            values = {**json.loads(claim), "status": answer.status, "headers": answer.headers, "body": body}
            self._run(_KEEP, key, json.dumps(values), SHARED_S, SHARED_BYTES)
            self._claims.pop(key, None)

    def drop(self, key: str) -> None:
        """See Answers."""
        self._own.drop(key)
        self._run(_DROP, key)
        self._claims.pop(key, None)

    def _claim(self, key: str, request: str) -> Answer | None:
        """The answer of another machine; None once the request is claimed here. Raises as `begin` does."""
        claim = json.dumps({"request": request, "process": self._process})
        while not self._redis.set(self._name(key), claim, nx=True, ex=CLAIM_S):
            if (data := self._redis.get(self._name(key))) is None:
                continue  # it has expired in between
            values = json.loads(data)
            check_same(values["request"], request)
            if "status" not in values:
                raise being_answered()
            headers = [(name, value) for name, value in values["headers"]]
            return Answer(values["status"], headers, base64.b64decode(values["body"]))
        self._claims[key] = claim
        return None

    def _run(self, script: str, key: str, *arguments: str | int) -> None:
        """Run a script on a key that is claimed here; Redis may be away."""
        if (claim := self._claims.get(key)) is None:
            return
        try:
            keys = (self._name(key), f"{self._prefix}:ages")
            self._redis.register_script(script)(keys=keys, args=(claim, *arguments))
        except RedisError as error:
            log.warning("an answer stays on this machine, Redis does not take it: %s", error)

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{key}"


def open_answers(settings: Settings) -> AnswerLog:
    """The answers of one home, said to others where there are any."""
    own = Answers(settings.home / "answers.db")
    if settings.bucket is None or settings.redis_url is None:
        return own
    return SharedAnswers(own, settings.redis_url, RedisNames.of(settings).answers)
