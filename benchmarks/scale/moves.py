"""Moves: activations and rollbacks through all servers, some simultaneous, and the time until every server follows.

Polls alone: with Redis away there is no hint. When a server follows is in its log, to the millisecond; a server that
moves the alias itself follows when it answers.
"""

from __future__ import annotations

import random
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.scale.audit import Call, call, compare
from benchmarks.scale.figures import spread
from benchmarks.scale.fleet.fleet import SERVERS, Fleet, wait_for
from benchmarks.scale.fleet.versions import publish

VERSIONS = 6
MOVERS = (1, 1, 2, 3)  # of a turn; one of these numbers at random
ROLLBACKS = 0.4
POLLED = 0.3  # the share of the moves that is made without Redis
PAUSE_S = 0.25  # at most, between two turns: or each would begin just after a poll
RECONNECT_S = 2.0
FOLLOWS_S = 30.0
_FOLLOWED = re.compile(r"^(\S+ \S+) \S+ codebook v\d+ is active, epoch (\d+)$", re.MULTILINE)


class Followers:
    """When each server followed which epoch: by its log from now on, and by its answers."""

    def __init__(self, logs: Sequence[Path]) -> None:
        self._logs, self._read = logs, [log.stat().st_size for log in logs]
        self._events: list[list[tuple[float, int]]] = [[] for _ in logs]

    def note(self, server: int, when: float, epoch: int) -> None:
        """Note that a server was at an epoch at a time."""
        self._events[server].append((when, epoch))

    def are_at(self, epoch: int) -> bool:
        """Whether all servers have followed an epoch or a later one; reads what is new in the logs."""
        for number, log in enumerate(self._logs):
            with log.open("rb") as file:
                file.seek(self._read[number])
                lines, end, _ = file.read().rpartition(b"\n")
            self._read[number] += len(lines) + len(end)
            for when, followed in _FOLLOWED.findall(lines.decode("utf-8", "replace")):
                self.note(number, datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp(), int(followed))
        return all(any(followed >= epoch for _, followed in events) for events in self._events)

    def lags(self, calls: Sequence[Call], *, since_commit: bool = False) -> list[float]:
        """Return the seconds from each answer, or from just before the write of its record, until the last follows."""
        highest = [_highest(events) for events in self._events]
        lags = []
        for made in calls:
            if made.record is not None:
                firsts = [steps[bisect_left(steps, (made.record["epoch"], 0.0))][1] for steps in highest]
                began = datetime.fromisoformat(made.record["moved_at"]).timestamp() if since_commit else made.done
                lags.append(max(0.0, max(firsts) - began))
        return lags


def _highest(events: Sequence[tuple[float, int]]) -> list[tuple[int, float]]:
    """Return each new highest epoch and when it was reached."""
    steps: list[tuple[int, float]] = []
    for when, epoch in sorted(events):
        if not steps or epoch > steps[-1][0]:
            steps.append((epoch, when))
    return steps


def measure(fleet: Fleet, count: int) -> dict[str, Any]:
    """Make `count` moves, POLLED of them without Redis."""
    versions, polled = publish(fleet.store(), VERSIONS), round(POLLED * count)
    before = fleet.store().active().epoch
    fleet.redis.stop()
    time.sleep(RECONNECT_S)
    without, polls = _run(fleet, polled, versions)
    fleet.redis.start()
    time.sleep(RECONNECT_S)
    with_hints, hints = _run(fleet, count - polled, versions)
    calls = without + with_hints
    audit = fleet.store().audit()[before:]
    times = {"polls alone": polls.lags(without), "with hints": hints.lags(with_hints)}
    times |= {
        "polls alone, from the write": polls.lags(without, since_commit=True),
        "with hints, from the write": hints.lags(with_hints, since_commit=True),
        "an activation": [made.done - made.sent for made in calls if made.record and made.record["move"] == "activate"],
        "a rollback": [made.done - made.sent for made in calls if made.record and made.record["move"] == "rollback"],
    }
    return {
        **compare(audit, calls),
        "simultaneous moves": sum(_overlap(calls)),
        "audits that differ": _differing(fleet),
        "seconds": {what: spread(values) for what, values in times.items()},
        "reasons": sorted({made.detail for made in calls if made.has_failed}),
    }


def _run(fleet: Fleet, count: int, versions: Sequence[str]) -> tuple[list[Call], Followers]:
    """Make moves in turns; each ends when all servers have followed."""
    chance, calls, followers = random.Random(count), list[Call](), Followers([node.log for node in fleet.servers])
    with ExitStack() as stack:
        clients = [stack.enter_context(fleet.client(number)) for number in range(SERVERS)]
        pool = stack.enter_context(ThreadPoolExecutor(SERVERS))
        while sum(made.record is not None for made in calls) < count:
            movers = chance.sample(range(SERVERS), chance.choice(MOVERS))
            jobs = [pool.submit(_move, clients[n], n, chance.choice(versions), chance.random()) for n in movers]
            turn = [job.result() for job in jobs]
            calls += (made for made, _, _ in turn)
            for made, when, followed in turn:
                followers.note(made.server, made.done, made.epoch)
                followers.note(made.server, when, followed)
            epoch = max(followed for _, _, followed in turn)
            wait_for(f"all servers follow epoch {epoch}", partial(followers.are_at, epoch), FOLLOWS_S, 0.01)
            time.sleep(chance.uniform(0.0, PAUSE_S))
    return calls, followers


def _move(http: httpx2.Client, server: int, version: str, draw: float) -> tuple[Call, float, int]:
    """Make a move; return it, and which epoch its server has followed at a time after that.

    A server that moves the alias may follow a simultaneous move with its own, of which its log says nothing.
    """
    path = "/codebooks/rollback" if draw < ROLLBACKS else f"/codebooks/{version}/activate"
    made = call(http, server, path)
    epoch = int(http.get("/codebooks/active").raise_for_status().json()["epoch"])
    return made, time.time(), epoch


def _overlap(calls: Sequence[Call]) -> list[bool]:
    """Whether each move was on its way together with the one that was sent before it."""
    moves = sorted((made for made in calls if made.record is not None), key=lambda made: made.sent)
    return [later.sent < earlier.done for earlier, later in pairwise(moves)]


def _differing(fleet: Fleet) -> int:
    """Return the number of servers whose audit differs from the bucket's."""
    newest = fleet.store().audit()[::-1][:1000]
    count = 0
    for number in range(SERVERS):
        with fleet.client(number) as http:
            count += http.get("/codebooks/audit", params={"limit": 1000}).json() != newest
    return count
