"""Assistant workers: idle workers that take batches off a running improve job.

An assistant is an RQ job like any other, queued behind the improve jobs; it may die at any time without loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis import Redis, RedisError
from rq import Queue, Worker

from core.errors import NotFound
from core.settings import Settings
from core.wire import HELP_FUNCTION, HELP_QUEUE, TIMEOUT_S
from engine.model import ImageModel
from records.journal import Journal
from safety.config import LoopConfig
from safety.runtime.model_runner import ModelRunner
from safety.runtime.progress import Cancelled, Progress
from safety.runtime.result_cache import ResultCache
from worker.shared_tasks import POLL_EVERY_S, TaskFolder

log = logging.getLogger(__name__)

CALL_EVERY_S = 5.0


class Caller:
    """Calls the idle workers at `redis_url` to assist a job, at most every CALL_EVERY_S; a no-op without Redis."""

    def __init__(self, redis_url: str | None, job_id: str, queue: str = HELP_QUEUE) -> None:
        self._url, self._job_id, self._queue, self._called = redis_url, job_id, queue, 0.0

    def __call__(self) -> None:
        """Queue one assistant for each idle worker without one."""
        if self._url is None or time.monotonic() - self._called < CALL_EVERY_S:
            return
        self._called = time.monotonic()
        try:
            with Redis.from_url(self._url, socket_timeout=1.0, socket_connect_timeout=1.0) as redis:
                queue = Queue(self._queue, connection=redis, serializer="json")
                idle = sum(worker.get_state() == "idle" for worker in Worker.all(connection=redis))
                for _ in range(idle - queue.count):
                    queue.enqueue_call(
                        HELP_FUNCTION, args=(self._job_id,), timeout=TIMEOUT_S, result_ttl=0, failure_ttl=60
                    )
        except RedisError as error:
            log.warning("no assistant worker was called: %s", error)


class AssistantProgress:
    """Progress of an assistant: raises Cancelled once its job is no longer running."""

    def __init__(self, journal: Journal, job_id: str) -> None:
        self._journal, self._job_id = journal, job_id

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.runtime.progress.Progress."""
        try:
            record = self._journal.get(self._job_id)
        except NotFound as gone:
            raise Cancelled(str(gone)) from None
        alive = self._journal.is_claimed(self._job_id, record.attempt)
        if record.status != "running" or record.cancel_requested or not alive:
            raise Cancelled(f"job {self._job_id} needs no help any more")


def help_with(job_id: str, settings: Settings, load: Callable[[Settings], ImageModel], config: LoopConfig) -> None:
    """Run tasks of the job until it ends or its attempt dies."""
    journal = Journal.of(settings)
    watch = AssistantProgress(journal, job_id)
    try:
        watch.report("help", 0, 1, 0)
        cache = ResultCache(journal.path(job_id) / "work")
        runner, folder = ModelRunner(load(settings), cache, watch, config.batch), TaskFolder(cache.folder / "tasks")
        assist(runner, folder, watch)
    except Cancelled as ended:
        log.info("%s", ended)


def assist(runner: ModelRunner, folder: TaskFolder, progress: Progress) -> None:
    """Run tasks of the folder until `progress` raises Cancelled."""
    while True:
        progress.report("help", 0, 1, 0)
        if not _do_one(runner, folder):
            time.sleep(POLL_EVERY_S)


def _do_one(runner: ModelRunner, folder: TaskFolder) -> bool:
    """Run the last open task, since the job itself begins with the first."""
    for name in reversed(folder.names()):
        task = folder.read(name, runner.model)
        if task is not None and folder.do(task, runner.cache, lambda task: runner.make(task, runner.steps("help", 1))):
            return True
    return False
