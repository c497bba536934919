"""Calls that move the active alias, and what the audit says of them: forks, gaps, lost and double moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2

from benchmarks.scale.fleet.fleet import CALL, KEY

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of a server, by its number. sent, done: seconds since the epoch of the clock.

    status: 0 without a response. record: what the call has made the active one; None where it changed nothing or was
    refused. epoch: that the server has followed when it answers; 0 after a refusal. detail: the reason of a refusal.
    """

    server: int
    sent: float
    done: float
    status: int
    record: Record | None
    epoch: int
    detail: str

    @property
    def has_failed(self) -> bool:
        """Whether the call has no 200; a rollback with nothing before it is no failure."""
        return self.status != 200 and "nothing to roll back to" not in self.detail


def call(http: httpx2.Client, server: int, path: str, body: object = None, key: str = KEY) -> Call:
    """POST a move to a server."""
    sent = time.time()
    try:
        answer = http.post(path, json=body or {}, headers={"Authorization": f"Bearer {key}"})
    except httpx2.HTTPError as error:
        return Call(server, sent, time.time(), 0, None, 0, type(error).__name__)
    done = time.time()
    if answer.status_code != 200:
        return Call(server, sent, done, answer.status_code, None, 0, answer.text)
    old, new = (answer.json()[side] for side in ("old", "new"))
    return Call(server, sent, done, 200, new if new != old else None, new["epoch"], "")


def compare(audit: Sequence[Record], calls: Sequence[Call]) -> dict[str, int]:
    """Compare calls with the audit, oldest first, whose first record is that before the calls."""
    records = {record["epoch"]: dict(record) for record in audit}
    acknowledged = [call.record for call in calls if call.record is not None]
    epochs = Counter(record["epoch"] for record in acknowledged)
    own = [record["epoch"] for record in audit[1:] if is_own(record)]
    return {
        "moves": len(acknowledged),
        "forks": sum(count > 1 for count in epochs.values())
        + (len(audit) - len(records))
        + sum(new["previous"] != old["version"] for old, new in pairwise(audit)),
        "gaps in the epochs": max(records) - min(records) + 1 - len(records),
        "lost": sum(records.get(record["epoch"]) != dict(record) for record in acknowledged),
        "not acknowledged": sum(epoch not in epochs for epoch in own),
        "failed calls": sum(call.has_failed for call in calls),
    }


def is_own(record: Record) -> bool:
    """Whether a call of the benchmark made a record: no job, no guard, not the first."""
    return str(record["moved_by"]).startswith((KEY, CALL.format("")))
