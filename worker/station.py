"""The RQ worker: takes improve jobs, or helps with one, each in a fresh process, and looks after the dead ones.

Spawned, not forked: a forked process deadlocks once torch has run in its parent.
"""

from __future__ import annotations

import signal
from types import FrameType

from redis import Redis
from rq import Queue
from rq.job import Job
from rq.worker import SpawnWorker
from rq.worker_registration import clean_worker_registry

from codebook.journal import Journal
from worker.allowed import AllowedJob
from worker.recovery import recover

QUEUE, HELP_QUEUE = "improve", "help"
WORKER_TTL_S = 25  # RQ waits for a job this long less 15 s, so the look for lost jobs comes round every 10 s


class Station(SpawnWorker):
    """RQ's worker plus recovery. Make one with `open_station`; RQ itself remakes it in the job's process."""

    job_class: type[AllowedJob] = AllowedJob
    max_connection_wait_time = 5.0
    journal: Journal  # set by `open_station`; the job's process neither has nor needs it
    stopping = False

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run `job` in its own process; if that died, put the job back at once."""
        super().execute_job(job, queue)
        recover(self.journal, self.queues[0], self.job_class.function)

    def run_maintenance_tasks(self) -> None:
        """Tidy RQ's registries and bring back lost jobs.

        Not RQ's own version: that one reads jobs with the plain Job class, whose call-backs could be anything.
        """
        for queue in self.queues:
            queue.started_job_registry.cleanup()
            queue.finished_job_registry.cleanup()
            queue.failed_job_registry.cleanup()
            clean_worker_registry(queue)
        recover(self.journal, self.queues[0], self.job_class.function)
        self.last_cleaned_at = None  # due again at every turn of the work loop

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop now, job and all: the job goes on from its journal when a worker is back."""
        self.stopping = True
        if self.horse_pid:
            self.kill_horse(signal.SIGKILL)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


def open_station(connection: Redis[bytes], journal: Journal, job_class: type[AllowedJob] = AllowedJob) -> Station:
    """A worker on `connection` that looks after the jobs of `journal`; `work()` runs it until a signal."""
    names = (QUEUE, HELP_QUEUE)  # improve jobs first
    station = Station(
        [Queue(name, connection=connection, job_class=job_class, serializer="json") for name in names],
        connection=connection,
        job_class=job_class,
        serializer="json",
        worker_ttl=WORKER_TTL_S,
        default_result_ttl=0,
    )
    station.journal = journal
    return station
