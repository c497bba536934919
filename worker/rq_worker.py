"""RQ worker: runs jobs, or assists one, each in a new job process, and recovers lost jobs.

Job processes are spawned, not forked: a forked process deadlocks once torch has run in its parent. An error of Redis
ends `work`, after the running job, and is raised from it, where RQ would log a traceback or retry for ever.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from redis import Redis, RedisError
from redis.client import PubSub, PubSubWorkerThread
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.worker import SpawnWorker
from rq.worker_registration import clean_worker_registry, register

from core import wire
from core.settings import Settings
from records.journal import Journal
from worker.allowed_job import AllowedJob
from worker.niceness import take_session
from worker.recovery import recover

log = logging.getLogger(__name__)

WORKER_TTL_S = 25  # RQ waits for a job this long less 15 s, so lost jobs are recovered every 10 s
HEARTBEAT_S = 10  # during a job; without a job each wait sends a heartbeat
RESUBSCRIBE_S = 2.0


class ImproveWorker(SpawnWorker):
    """RQ's worker with recovery. Create it with `open_worker`; RQ itself creates it again in the job process."""

    job_class: type[AllowedJob] = AllowedJob
    max_connection_wait_time = 5.0
    journal: Journal  # set by `open_worker`; not in the job process, which does not need it
    settled: Callable[[], None] = staticmethod(lambda: None)  # called once Redis has served a whole turn
    stopping = False
    beats = 0
    lost: RedisError | None = None

    def work(self, *arguments: Any, **options: Any) -> bool:  # noqa: ANN401  (RQ's signature)
        """Work until a signal. Raises the error of Redis that ended it earlier."""
        worked = False
        try:
            worked = super().work(*arguments, **options)
        except RedisError as error:  # before the first turn
            self.teardown()
            self.lost = error
        except StopRequested:  # a signal in RQ's teardown
            pass
        if self.lost is not None and not self.stopping:
            raise self.lost
        return worked

    def check_for_suspension(self, burst: bool) -> None:
        """See RQ."""
        with self._ended_by_redis():
            super().check_for_suspension(burst)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """See RQ."""
        with self._ended_by_redis():
            return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:  # noqa: ANN401  (RQ's signature)
        """See RQ. RQ sends one before and one after each wait for a job: after the second, a wait has succeeded."""
        with self._ended_by_redis():
            super().heartbeat(timeout, pipeline)
        if pipeline is None:
            self.beats += 1
            if self.beats == 2:
                self.settled()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run `job` in its own process; if that died, enqueue the job again immediately."""
        with self._ended_by_redis():
            # The job process opens a connection of its own, which may fail although the one here lives on.
            fresh = self.connection.connection_pool.make_connection()
            fresh.connect()
            fresh.disconnect()
            super().execute_job(job, queue)
            recover(self.journal, self.queues[0], self.job_class.functions)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """See RQ. Without Redis the job process goes on and is waited for: its results are in the journal."""
        with suppress(RedisError):
            super().maintain_heartbeats(job, execution)

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """See RQ; runs in the job process. The outcome of the job is in the journal, even if Redis does not get it."""
        take_session(Settings.from_environ(os.environ).job_share)
        try:
            return super().perform_job(job, queue, execution)
        except RedisError as error:
            log.warning("Redis does not hear how job %s ended: %s", job.id, error)
            return False

    def run_maintenance_tasks(self) -> None:
        """Clean RQ's registries and recover lost jobs.

        Not RQ's own version: that one reads jobs with the plain Job class, whose callbacks could be anything.
        """
        with self._ended_by_redis():
            register(self)  # again: Redis may have lost its data, and the servers read the workers there
            for queue in self.queues:
                queue.started_job_registry.cleanup()
                queue.finished_job_registry.cleanup()
                queue.failed_job_registry.cleanup()
                clean_worker_registry(queue)
            recover(self.journal, self.queues[0], self.job_class.functions)
        self.last_cleaned_at = None  # due again at every turn of the work loop

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop immediately and kill the job process: the job resumes from its journal once a worker is back."""
        self.stopping = True
        if self.horse_pid:
            self.kill_horse(signal.SIGKILL)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """See RQ; what cannot be removed from Redis expires there."""
        with suppress(RedisError):
            self.register_death()  # type: ignore[no-untyped-call]
        with suppress(RedisError):
            self.unsubscribe()  # type: ignore[no-untyped-call]
        if self.pubsub_thread is not None:
            self.pubsub_thread.stop()

    def _pubsub_exception_handler(self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread) -> None:
        """Subscribe again later, without a log line each time; if that is not permitted, do without."""
        if not isinstance(exc, RedisConnectionError):
            log.warning("a cancelled job ends at its next step only, its channel cannot be heard: %s", exc)
            pubsub_thread.stop()
        time.sleep(RESUBSCRIBE_S)

    @contextmanager
    def _ended_by_redis(self) -> Iterator[None]:
        """End RQ's loop on an error of Redis; `work` raises it."""
        try:
            yield
        except RedisError as error:
            self.lost = error
            raise StopRequested from None


def open_worker(
    connection: Redis[bytes],
    journal: Journal,
    settled: Callable[[], None],
    job_class: type[AllowedJob] = AllowedJob,
    names: wire.RedisNames = wire.PLAIN_NAMES,
) -> ImproveWorker:
    """Return a worker on `connection` that recovers the jobs of `journal`; `work()` runs it until a signal.

    settled: called once Redis has served a whole turn. Raises Redis' errors.
    """
    queues = (names.queue, names.help_queue)  # improve jobs first
    worker = ImproveWorker(
        [Queue(name, connection=connection, job_class=job_class, serializer="json") for name in queues],
        connection=connection,
        job_class=job_class,
        serializer="json",
        worker_ttl=WORKER_TTL_S,
        job_monitoring_interval=HEARTBEAT_S,
        default_result_ttl=0,
    )
    worker.journal, worker.settled = journal, settled
    return worker
