"""Improve jobs of a fleet: their start through a server, the node that runs one, and what became of them all."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx2

from benchmarks.scale.fleet.fleet import PATIENCE_S, SERVERS, Fleet, Node, wait_for
from benchmarks.short_job import ROUNDS
from core.errors import NoStorage
from records.jobs.claim import has_claim
from records.journal import JobRecord

AGAIN_S = 0.2


def start(fleet: Fleet, seed: int) -> str:
    """Start a job on the first server that takes it, in turn until one does, and return its id."""
    turn = itertools.cycle(range(SERVERS))
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(httpx2.HTTPError), fleet.client(next(turn)) as http:
            answer = http.post("/improve", json={"seed": seed}, timeout=10)
            if answer.status_code == 202:
                return str(answer.json()["id"])
        time.sleep(AGAIN_S)
    raise TimeoutError("no server takes a job")


class Watcher:
    """This process' view of the jobs; the outcome is of those that are added after it is made."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._journal = fleet, fleet.journal()
        self._earlier = {job.id for job in self._journal.list()}

    def get(self, job: str) -> JobRecord:
        """Return a job."""
        return self._journal.get(job)

    def wait_attempt(self, job: str, attempt: int) -> float:
        """Wait until an attempt has begun, or the job has ended; return the time."""
        wait_for(f"attempt {attempt} of {job}", lambda: self._has_begun(job, attempt))
        return time.monotonic()

    def wait_ended(self, job: str) -> JobRecord:
        """Wait until a job has ended."""
        wait_for(f"the end of {job}", lambda: self.get(job).ended is not None, every_s=0.2)
        return self.get(job)

    def node(self, job: str, attempt: int) -> Node | None:
        """Return the worker that runs an attempt."""
        folders = {worker: worker.home / "jobs" / job / "work" for worker in self._fleet.workers}
        return next((worker for worker, folder in folders.items() if has_claim(folder, attempt)), None)

    def outcome(self, accepted: Sequence[str]) -> dict[str, Any]:
        """Count lost, doubled and unfinished jobs, and rounds that are not published just once."""
        jobs = {job.id: job for job in self._journal.list() if job.id not in self._earlier}
        published = Counter((manifest.job, manifest.round) for manifest in self._fleet.store().versions())
        rounds = [(id, number) for id in jobs for number in range(1, ROUNDS + 1)]
        return {
            "jobs": len(accepted),
            "attempts": sum(jobs[id].attempt for id in accepted if id in jobs),
            "jobs lost": sum(id not in jobs for id in accepted),
            "jobs not accepted": sum(id not in accepted for id in jobs),
            "jobs not finished": sum(job.status != "finished" for job in jobs.values()),
            "rounds not published once": sum(published[one] != 1 for one in rounds),
            "errors": sorted({str(job.error) for job in jobs.values() if job.error}),
        }

    def _has_begun(self, job: str, attempt: int) -> bool:
        with suppress(NoStorage):
            record = self.get(job)
            return record.ended is not None or record.attempt >= attempt
        return False
