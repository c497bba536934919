"""Recovery of lost jobs, whose job process, worker or Redis died.

The journal knows unfinished jobs, the claims the live ones, the queue the waiting ones. Enqueuing a job once too often
is harmless: the second delivery finds the record closed or claimed, and the fencing token covers the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from rq import Queue

from core.errors import Conflict, NoStorage
from core.wire import ATTEMPTS, LIFETIME, UNFINISHED
from records.journal import JobRecord, Journal

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
LOOK_AGAIN_S = 0.5  # a worker takes a job from the queue, and says so a moment later
# RQ lists an execution for a minute longer than it keeps it, and fails to delete a job that lists one without a row.
LISTED_LONGER_S = 61.0


def recover(journal: Journal, queue: Queue, functions: Mapping[str, str]) -> None:
    """Enqueue every unfinished job that neither waits in `queue` nor is worked on, or close it.

    functions: dotted names of the functions, by kind of job. A cancelled job that has not begun ends "cancelled"; of
    another one the next attempt says how it ended, since it may have published or moved. One that died MAX_ATTEMPTS
    times ends "failed". While records cannot be written, all wait. Raises Redis' errors.
    """
    try:
        if _lost(journal, queue, functions):
            time.sleep(LOOK_AGAIN_S)
            for record in _lost(journal, queue, functions):
                _settle(journal, queue, record, functions[record.kind])
    except NoStorage as error:
        log.error("lost jobs wait: %s", error.about(error.path))


def _lost(journal: Journal, queue: Queue, functions: Mapping[str, str]) -> list[JobRecord]:
    """The unfinished jobs that neither wait, nor start, nor are worked on."""
    waiting = set(queue.get_job_ids())
    return [
        record
        for record in journal.list()
        if record.status in UNFINISHED
        and record.kind in functions
        and record.id not in waiting
        and not journal.is_claimed(record.id, record.attempt)
        and not _is_starting(queue, record)
    ]


def _is_starting(queue: Queue, record: JobRecord) -> bool:
    """Whether a worker has taken a job from the queue and its attempt has not begun yet: its process takes seconds to.

    RQ keeps the execution of a worker that died for about a minute; one whose attempt has begun needs no such grace.
    """
    registry = queue.started_job_registry
    alive = queue.connection.zrangebyscore(registry.key, time.time(), "+inf")
    if not any(entry.decode().partition(":")[0] == record.id for entry in alive):
        return False
    row = queue.fetch_job(record.id)
    return row is not None and row.meta.get(ATTEMPTS) == record.attempt


def _settle(journal: Journal, queue: Queue, record: JobRecord, function: str) -> None:
    try:
        has_attempts = record.attempt < MAX_ATTEMPTS
        if record.cancel_requested and not (record.attempt and has_attempts):
            journal.update(record.id, attempt=record.attempt, status="cancelled")
        elif not has_attempts:
            gave_up = f"gave up: the worker died in each of {record.attempt} attempts"
            journal.update(record.id, attempt=record.attempt, status="failed", error=gave_up)
        else:
            # Written before the job is enqueued: without a writable record its attempt would end immediately.
            purpose = ", which says how it ended" if record.cancel_requested else ""
            waiting = {**record.progress, "message": f"waits for attempt {record.attempt + 1}{purpose}"}
            journal.update(record.id, attempt=record.attempt, progress=waiting)
            log.warning("job %s was left after attempt %d: enqueued again", record.id, record.attempt)
            _enqueue(queue, record, function)
    except Conflict:  # since the list was read it ended, or another attempt began
        log.info("job %s ended or was begun meanwhile", record.id)


def _enqueue(queue: Queue, record: JobRecord, function: str) -> None:
    if old := queue.fetch_job(record.id):
        old.execution_registry.cleanup(time.time() + LISTED_LONGER_S)
        old.delete()  # the dead attempt's row would keep its failure beside the new one's state
    meta = {ATTEMPTS: record.attempt}
    queue.enqueue_call(function, args=(record.id,), job_id=record.id, meta=meta, **LIFETIME)
