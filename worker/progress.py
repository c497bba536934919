"""Progress of an attempt in the journal: plan, steps, rounds and the end, each written under its fencing token.

A superseded attempt can write nothing: every call raises Conflict.
"""

from __future__ import annotations

import time
from datetime import datetime
from itertools import pairwise
from typing import Any

from core.clock import utc_now
from core.errors import Conflict
from records.journal import JobRecord, Journal
from safety.policy.plan import Plan
from safety.runtime.pace import Pace
from safety.runtime.progress import Cancelled

LONGEST_PAUSE_S = 60.0  # between two events; a longer gap means that the worker was dead
WRITE_EVERY_S = 1.0  # the loop may report a hundred times a second


class JournalProgress:
    """Reporter of attempt `fence` of job `job_id`; the loop calls `report`, the job the rest."""

    def __init__(self, journal: Journal, job_id: str, fence: int, every_s: float = WRITE_EVERY_S) -> None:
        """every_s: least seconds between two reports of a phase that are written."""
        self.journal, self.job_id, self.fence = journal, job_id, fence
        self.facts: dict[str, Any] = {}  # more of the record's `progress`
        self._every_s = max(every_s, journal.write_every_s)
        self._phase = ("", -1)
        self._written = self._looked = 0.0  # monotonic seconds
        self._pace: Pace | None = None
        self._memory = 0

    def plan(self, plan: Plan, memory: int) -> None:
        """Record the plan of the run, or the one that takes its place; what was measured so far stays.

        memory: bytes that the run holds beside the model. The first estimate is at the rates of the last finished job.
        """
        self._memory = memory
        self._pace = Pace(plan, self.journal.rates()) if self._pace is None else self._pace.on(plan)
        self._write(**self._plan())

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """Say that `done` of `total` steps of `phase` are over in `round` (0 before the first).

        Raises Cancelled if the job was cancelled, Conflict if a later attempt has taken it over.
        """
        now = time.monotonic()
        if now - self._looked >= self.journal.look_every_s or self._phase != (phase, round):
            self._looked = now
            self._check(self.journal.get(self.job_id))
        if self._pace is not None:
            self._pace.report(phase, done, total, round)
        if self._phase == (phase, round) and done < total and now - self._written < self._every_s:
            return
        self._phase, self._written = (phase, round), now
        message = f"round {round}: {phase}" if round else phase
        report = {"phase": phase, "done": done, "total": total, "round": round, "message": message}
        self._write(progress={**report, **self.facts}, **self._plan())
        self.journal.append_event(self.job_id, {"event": "progress", **report})

    def round(self, summary: dict[str, Any]) -> None:
        """Record the outcome of a round; a replayed round replaces its earlier record."""
        others = [r for r in self.journal.get(self.job_id).rounds if r["round"] != summary["round"]]
        self._write(rounds=[*others, summary])
        self.journal.append_event(self.job_id, {"event": "round", **summary})

    def seconds(self) -> dict[str, float]:
        """Return the seconds in each phase over all attempts, by the job's events, without the time it waited."""
        events = [e for e in self.journal.events(self.job_id, 0) if e["event"] == "progress"]
        spent: dict[str, float] = {}
        for one, next_one in pairwise(events):
            gap = (datetime.fromisoformat(next_one["at"]) - datetime.fromisoformat(one["at"])).total_seconds()
            if gap < LONGEST_PAUSE_S:
                spent[one["phase"]] = round(spent.get(one["phase"], 0.0) + gap, 1)
        return spent

    def end(self, status: str, *, result: dict[str, Any] | None = None, error: str | None = None) -> None:
        """Close the record with `status`: "finished", "failed" or "cancelled"."""
        if self._pace is not None and status == "finished":
            self._pace.end()
        self._write(status=status, result=result, error=error, **self._plan())

    def _plan(self) -> dict[str, Any]:
        """The field `plan` of the record, once there is one."""
        if self._pace is None:
            return {}
        left = self._pace.seconds_left
        times: dict[str, Any] = {"seconds_left": None, "eta": None}
        if left is not None:
            times = {"seconds_left": round(left, 1), "eta": utc_now(ahead=left)}
        facts = {"memory": self._memory, "rates": dict(self._pace.rates)}
        return {"plan": {**self._pace.to_dict(), **times, **facts}}

    def _check(self, record: JobRecord) -> None:
        if record.attempt != self.fence:
            raise Conflict(f"job {self.job_id} is at attempt {record.attempt}; attempt {self.fence} must stop")
        if record.cancel_requested:
            raise Cancelled(f"job {self.job_id} was cancelled")

    def _write(self, **fields: Any) -> None:  # noqa: ANN401  (the journal's fields)
        self.journal.update(self.job_id, attempt=self.fence, **fields)
