"""The door to the queue: hands jobs to the worker by name, and tells whether Redis answers.

Knows Redis and the worker's dotted name. The journal holds the truth: a job that could not be enqueued is not lost,
the worker finds it in the journal once Redis is back.
"""

from __future__ import annotations

import logging

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

log = logging.getLogger(__name__)

QUEUE = "improve"
FUNCTION = "worker.jobs.improve"
TIMEOUT_S = 24 * 3600  # a net for a hung job; a user ends one sooner
KEEP_S = 3600  # the queue's own row; the record that counts is in the journal
PATIENCE_S = 1.0  # how long a request may wait for Redis


class ImproveQueue:
    """The queue in the Redis at `url`; None is a Redis that never answers. Thread-safe."""

    def __init__(self, url: str | None) -> None:
        self._redis = url and Redis.from_url(
            url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
        )

    def put(self, job_id: str) -> bool:
        """Enqueue an improve job; False where Redis does not answer and the job waits in the journal alone."""
        if not self._redis:
            return False
        try:
            Queue(QUEUE, connection=self._redis, serializer="json").enqueue_call(
                FUNCTION, args=(job_id,), job_id=job_id, timeout=TIMEOUT_S, result_ttl=KEEP_S, failure_ttl=KEEP_S
            )
        except RedisError as error:
            log.warning("job %s waits in the journal: %s", job_id, error)
            return False
        return True

    def stop(self, job_id: str) -> None:
        """Ask the worker to kill a running job now; where that fails, the job ends itself at its next step."""
        if not self._redis:
            return
        try:
            send_stop_job_command(self._redis, job_id, serializer="json")
        except (RedisError, NoSuchJobError, InvalidJobOperation) as error:
            log.info("job %s was not stopped at once: %s", job_id, error)

    def answers(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(self._redis and self._redis.ping())
        except RedisError:
            return False

    def close(self) -> None:
        """Close the connections."""
        if self._redis:
            self._redis.close()
