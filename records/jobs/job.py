"""Job record: request, progress, outcome, and the legal transitions of its status.

Knows the fields. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from core.clock import utc_now
from core.errors import BadInput, Conflict
from core.json_records import misfit, plain

Status = Literal["queued", "running", "finished", "failed", "cancelled"]

_MOVES: Mapping[Status, tuple[Status, ...]] = {
    "queued": ("queued", "running", "failed", "cancelled"),
    "running": ("running", "finished", "failed", "cancelled"),
    "finished": (),  # no transition left: the job has ended
    "failed": (),
    "cancelled": (),
}


class Changes(TypedDict, total=False):
    """The fields that `Journal.update` may change."""

    status: Status
    progress: dict[str, Any]
    plan: dict[str, Any] | None
    rounds: list[dict[str, Any]]
    result: dict[str, Any] | None
    error: str | None
    cancel_requested: bool


@dataclass(frozen=True)
class JobRecord:
    """Snapshot of one job.

    created, started, ended: UTC, ISO 8601; None until then.
    progress: phase, done, total, round, message. rounds: one JSON object per round. result: of a finished job.
    attempt: number of attempts begun; it is the fencing token of all that the attempt writes.
    plan: phases with images and seconds, images_done, seconds_left, eta, rates; None before there is one.
    """

    id: str
    kind: str
    status: Status
    created: str
    started: str | None
    ended: str | None
    request: dict[str, Any]
    progress: dict[str, Any]
    rounds: list[dict[str, Any]]
    result: dict[str, Any] | None
    error: str | None
    attempt: int
    cancel_requested: bool
    plan: dict[str, Any] | None = None

    @classmethod
    def queued(cls, id: str, kind: str, request: dict[str, Any]) -> JobRecord:
        """Return a new queued job."""
        progress = {"phase": "queued", "done": 0, "total": 0, "round": 0, "message": ""}
        return cls(id, kind, "queued", utc_now(), None, None, request, progress, [], None, None, 0, False)

    def moved(self, changes: Changes) -> JobRecord:
        """Return the record with `changes`; the times of start and end follow the status.

        Raises BadInput for an unknown field or a value of a wrong type, Conflict for an illegal transition of the
        status or any change of a job that has ended.
        """
        for name in changes.keys() - Changes.__annotations__.keys():
            raise BadInput(name, "<a value>", f"one of {', '.join(Changes.__annotations__)}")
        if (wrong := misfit(JobRecord, changes)) is not None:
            raise BadInput(wrong, dict(changes)[wrong], "a value of the field's type")
        if self.ended is not None:
            raise Conflict(f"job {self.id} has ended: {self.status}")
        status = changes.get("status", self.status)
        if status not in _MOVES[self.status]:
            raise Conflict(f"job {self.id} is {self.status} and cannot become {status}")
        started = self.started or (utc_now() if status == "running" else None)
        ended = None if _MOVES[status] else utc_now()
        return replace(self, **plain("changes", changes), started=started, ended=ended)
