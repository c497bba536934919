"""Outages: the line to S3 cut or silent, Redis away, and both, while images are drawn and a job runs.

The alias moves meanwhile, on a machine whose own line stays; all servers must be level soon after the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

import httpx2

from benchmarks.scale.audit import call
from benchmarks.scale.callers import callers
from benchmarks.scale.figures import spread
from benchmarks.scale.fleet.fleet import KEY, SERVERS, Fleet, wait_for
from benchmarks.scale.fleet.jobs import Watcher, start
from benchmarks.scale.fleet.line import NOTICE_S
from benchmarks.scale.fleet.versions import BASE, publish
from benchmarks.scale.moves import VERSIONS

WARM_S = 2.0
LEVEL_EVERY_S = 0.01


@dataclass(frozen=True)
class Outage:
    """An outage by its parts, each in multiples of the time of `measure`; 0 for a part that stays.

    silent: whether the line drops what is sent instead of refusing it.
    """

    line: float = 0.0
    redis: float = 0.0
    silent: bool = False


OUTAGES = {
    "line cut": Outage(line=1.0),
    "Redis away": Outage(redis=2.0),
    "both": Outage(line=1.0, redis=2.0),
    "line silent": Outage(line=1.0, silent=True),
}


def measure(fleet: Fleet, cut_s: float) -> dict[str, Any]:
    """Run each of OUTAGES; the line is away for `cut_s`, Redis for twice as long."""
    versions = publish(fleet.store(), VERSIONS)
    watcher, outages, accepted = Watcher(fleet), {}, list[str]()
    for name, outage in OUTAGES.items():
        outages[name] = _run(fleet, outage, cut_s, versions[1:3], watcher, accepted)
        print(name, outages[name], flush=True)
    return {"seconds of the line": cut_s, "outages": outages, **watcher.outcome(accepted)}


def _run(
    fleet: Fleet, outage: Outage, cut_s: float, versions: list[str], watcher: Watcher, accepted: list[str]
) -> dict[str, Any]:
    """Run one outage; the alias goes from BASE to versions[0], and requests by name are of versions[1]."""
    store = fleet.store()
    store.activate(BASE, by=KEY)
    _warm(fleet, versions[1])
    first = len(accepted)
    accepted.append(start(fleet, first))
    watcher.wait_attempt(accepted[first], 1)
    with callers(fleet, pinned=versions[1]) as responses:
        time.sleep(WARM_S)
        late = Thread(target=_start_later, args=(fleet, accepted))
        with _away(fleet, outage, cut_s) as levels:
            if not outage.line:
                late.start()
            time.sleep(2 * NOTICE_S)
            store.activate(versions[0], by=KEY)
        if not outage.line:
            late.join()
        ended = [watcher.wait_ended(job) for job in accepted[first:]]
    return {
        "images": len(responses.tally.images.pngs),
        "failed": responses.failed,
        "reasons": dict(responses.reasons),
        "seconds until level": dict(levels),
        "attempts of the jobs": [record.attempt for record in ended],
        "seconds of an image": {kind: spread(values) for kind, values in responses.seconds.items()},
    }


def _warm(fleet: Fleet, version: str) -> None:
    """Let every server draw under a version by name: one that it has never drawn under is in the bucket alone."""
    for number in range(SERVERS):
        with fleet.client(number) as http:
            http.post("/generate", json={"prompt": "a red apple", "codebook": version}).raise_for_status()


def _start_later(fleet: Fleet, accepted: list[str]) -> None:
    """Start another job as soon as the one that runs has ended."""
    accepted.append(start(fleet, len(accepted)))


@contextmanager
def _away(fleet: Fleet, outage: Outage, cut_s: float) -> Iterator[dict[str, float]]:
    """Begin the outage, give the seconds until all are level after each part's end, and run the block within it."""
    assert fleet.line is not None
    levels: dict[str, float] = {}
    began = time.monotonic()
    if outage.line:
        fleet.line.silent, fleet.line.cut = outage.silent, not outage.silent
    if outage.redis:
        fleet.redis.stop()
    yield levels
    if outage.line:
        time.sleep(max(0.0, began + outage.line * cut_s - time.monotonic()))
        fleet.line.silent = fleet.line.cut = False
        levels["line"] = level(fleet, fleet.store().active().epoch)
    if outage.redis:
        time.sleep(max(0.0, began + outage.redis * cut_s - time.monotonic()))
        fleet.redis.start()
        with fleet.client(0) as http:
            made = call(http, 0, f"/codebooks/{BASE}/activate")
        assert made.record is not None, made.detail
        levels["Redis"] = level(fleet, made.record["epoch"])


def level(fleet: Fleet, epoch: int) -> float:
    """Return the seconds until all servers have followed an epoch."""
    began = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(fleet.client(number)) for number in range(SERVERS)]
        for http in clients:
            wait_for(f"all follow epoch {epoch}", partial(_is_at, http, epoch), every_s=LEVEL_EVERY_S)
    return time.monotonic() - began


def _is_at(http: httpx2.Client, epoch: int) -> bool:
    return int(http.get("/codebooks/active").json()["epoch"]) >= epoch
