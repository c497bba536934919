"""State of the queue: the health of Redis and the heartbeats of the workers.

Knows Redis' errors and the local clock. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from redis import exceptions as redis_errors

from core.clock import utc_now

SILENT_S = 30.0  # three missed heartbeats of a worker (HEARTBEAT_S of worker/rq_worker.py)

# The first match of an error: its name in /health/ready, and the reason why no job can be queued.
_FAULTS: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    ((redis_errors.ReadOnlyError,), "read-only", "it is a read-only replica"),
    ((redis_errors.OutOfMemoryError,), "full", "its memory is full (maxmemory)"),  # type: ignore[attr-defined]  # newer than the stubs
    ((redis_errors.BusyLoadingError,), "loading", "it is still loading its data"),
    (
        (
            redis_errors.AuthenticationError,
            redis_errors.AuthorizationError,
            redis_errors.AuthenticationWrongNumberOfArgsError,
            redis_errors.NoPermissionError,
        ),
        "denied",
        "it refuses the user or password of SAFECB_REDIS_URL, or to let this user write",
    ),
    ((redis_errors.ConnectionError, redis_errors.TimeoutError, OSError), "unreachable", "it does not answer"),
)


@dataclass(frozen=True)
class WorkerState:
    """`state`: "heard", "silent", or "unknown" while Redis is not available.

    since: UTC, ISO 8601, the last heartbeat of any worker; before the first, the start of this server.
    """

    state: str
    since: str


@dataclass(frozen=True)
class QueueState:
    """`redis`: "ok", the name of a fault, or "unknown" before the first poll; `reason`: why jobs cannot be queued."""

    redis: str
    reason: str | None
    worker: WorkerState

    def report(self) -> dict[str, Any]:
        """The fields of /health/ready."""
        worker = {"state": self.worker.state, "since": self.worker.since}
        return {"redis": self.redis, "redis_reason": self.reason, "worker": worker}

    def message(self, status: str, message: str) -> str:
        """Return the message of an unfinished job: `message`, and what the job waits for, if anything."""
        if status == "queued" and self.reason is not None:
            return f"waits for Redis: {self.reason}"
        if self.worker.state != "silent":
            return message
        silence = f"no worker has been heard of since {self.worker.since}"
        return f"{message}; {silence}" if message else silence


def fault(error: Exception) -> tuple[str, str]:
    """Return the name of the fault behind an error of Redis, and why no job can be queued."""
    for kinds, name, reason in _FAULTS:
        if isinstance(error, kinds):
            return name, reason
    code = str(error).rpartition("caused error: ")[2].partition(" ")[0]  # redis-py puts a pipeline's command before it
    if code == "MISCONF":
        return "refusing", "it cannot save its data and refuses writes (MISCONF)"
    return "refusing", f"it refuses writes ({code if code.isupper() else type(error).__name__})"


@dataclass
class Heartbeats:
    """Liveness of workers, by heartbeats that change between two polls: no clock of another machine is read."""

    _beats: Mapping[str, bytes | None] = field(default_factory=dict)
    _heard: str = field(default_factory=utc_now)
    _counts_from: float = field(default_factory=monotonic)  # start of the silence: last heartbeat, or return of Redis

    def heard(self, beats: Mapping[str, bytes | None]) -> WorkerState:
        """Return the state after a poll that read these heartbeats, by worker."""
        if any(self._beats.get(worker) != beat for worker, beat in beats.items()):
            self._heard, self._counts_from = utc_now(), monotonic()
        self._beats = beats
        return WorkerState("silent" if monotonic() - self._counts_from > SILENT_S else "heard", self._heard)

    def deaf(self) -> WorkerState:
        """Return the state after a poll that failed; the silence restarts once Redis is back."""
        self._counts_from = monotonic()
        return WorkerState("unknown", self._heard)
