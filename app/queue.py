"""Client of the job queue: enqueues jobs by dotted name and polls whether the queue works.

Knows Redis and the worker's dotted name. The journal is the source of truth: a job that could not be enqueued is not
lost, the worker finds it in the journal once Redis is back.
"""

from __future__ import annotations

import logging
from threading import Event

from redis import RedisError
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.worker_registration import get_keys

from app.queue_state import Heartbeats, QueueState, fault
from core import wire
from core.redis_client import open_redis

log = logging.getLogger(__name__)

PATIENCE_S = 1.0  # how long a request may wait for Redis
POLL_EVERY_S = 2.0


class ImproveQueue:
    """The queue in the Redis at `url`; None is a Redis that never answers. Thread-safe.

    state: as of the last `poll` or failed `put`.
    """

    def __init__(self, url: str | None, names: wire.RedisNames = wire.PLAIN_NAMES) -> None:
        self._names = names
        self._redis = None if url is None else open_redis(url, PATIENCE_S)
        self._url = url
        self._heartbeats = Heartbeats()
        self.state = QueueState("unknown", None, self._heartbeats.deaf())

    def put(self, job_id: str, kind: str = wire.IMPROVE) -> None:
        """Enqueue a job; if Redis refuses it, `state` has the reason and the job waits in the journal."""
        if not self._redis:
            return
        try:
            queue = Queue(self._names.queue, connection=self._redis, serializer="json")
            queue.enqueue_call(
                wire.FUNCTIONS[kind], args=(job_id,), job_id=job_id, meta={wire.ATTEMPTS: 0}, **wire.LIFETIME
            )
        except RedisError as error:
            log.warning("job %s waits in the journal: %s", job_id, error)
            self._note(self._failed(error), str(error))

    def stop(self, job_id: str) -> None:
        """Send the worker RQ's stop command for a running job; if that fails, the job ends itself at its next step."""
        if not self._redis:
            return
        try:
            send_stop_job_command(self._redis, job_id, serializer="json")
        except (RedisError, NoSuchJobError, InvalidJobOperation) as error:
            log.info("job %s was not stopped immediately: %s", job_id, error)

    def poll(self) -> None:
        """Update `state` by a write over a new connection: old ones may outlive the address. Blocks for seconds."""
        if self._url is None:
            self._note(self._failed(ConnectionError()), "no Redis is set")
            return
        try:
            with open_redis(self._url, PATIENCE_S) as redis:
                redis.set(self._names.probe, wire.PROBE_VALUE, ex=wire.PROBE_TTL_S)
                workers = sorted(get_keys(Queue(self._names.queue, connection=redis)))
                with redis.pipeline(transaction=False) as pipeline:
                    for worker in workers:
                        pipeline.hget(worker, "last_heartbeat")
                    beats = dict(zip(workers, pipeline.execute(), strict=True))
        except RedisError as error:
            self._note(self._failed(error), str(error))
        else:
            self._note(QueueState("ok", None, self._heartbeats.heard(beats)))

    def close(self) -> None:
        """Close the connections."""
        if self._redis:
            self._redis.close()

    def _failed(self, error: Exception) -> QueueState:
        return QueueState(*fault(error), self._heartbeats.deaf())

    def _note(self, state: QueueState, error: str = "") -> None:
        """Set the state, and log what changed."""
        before, self.state = self.state, state
        if state.redis != before.redis and state.reason is not None:
            log.warning("jobs cannot be queued: Redis is %s, %s: %s", state.redis, state.reason, error)
        elif state.redis != before.redis and before.reason is not None:
            log.warning("jobs can be queued again")
        match before.worker.state, state.worker.state:
            case (("heard" | "unknown"), "silent"):
                log.warning("no worker has been heard of since %s", state.worker.since)
            case "silent", "heard":
                log.warning("a worker is heard of again")


def listen(queue: ImproveQueue, ended: Event) -> None:
    """Poll `queue` until `ended`: the body of a thread."""
    while not ended.is_set():
        queue.poll()
        ended.wait(POLL_EVERY_S)
