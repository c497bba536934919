"""Kills: kill -9 of servers, and of workers with their job processes, while images are drawn and the alias moves.

A worker is started again on its machine, or its machine stays away until another one has taken the job over.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import Event, Thread
from typing import Any

import torch

from benchmarks.scale.audit import Call, call, compare
from benchmarks.scale.callers import callers
from benchmarks.scale.figures import spread
from benchmarks.scale.fleet.fleet import KEY, SERVERS, Fleet
from benchmarks.scale.fleet.jobs import Watcher, start
from benchmarks.scale.fleet.versions import BASE
from benchmarks.swap import wrong

TAKEOVERS = 0.1  # the share of the kills of workers after which the machine stays away
MOST = 3  # kills of one job: after five attempts it fails
SOON_S = 3.0  # at most, from the beginning of an attempt to its end
MOVE_EVERY_S = 1.0


@dataclass
class Kills:
    """Kills so far, and the seconds until a job went on, or a server could draw again."""

    accepted: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    restart: list[float] = field(default_factory=list)
    takeover: list[float] = field(default_factory=list)
    servers: list[float] = field(default_factory=list)


def measure(fleet: Fleet, count: int) -> dict[str, Any]:
    """Kill servers `count` times and workers `count` times."""
    fleet.store().activate(BASE, by=KEY)  # jobs begin there, so that their versions edit the pixel table alone
    kills, before, watcher = Kills(), fleet.store().active().epoch, Watcher(fleet)
    with callers(fleet) as responses, _threads(fleet, kills, count):
        takeovers = max(1, round(TAKEOVERS * count))
        while len(kills.takeover) < takeovers:
            _kill_workers(fleet, watcher, kills, 1, is_restarted=False)
        while len(kills.restart) < count - takeovers:
            times = min(MOST, count - takeovers - len(kills.restart))
            _kill_workers(fleet, watcher, kills, times, is_restarted=True)
    store = fleet.store()

    @cache
    def table_of(version: str) -> torch.Tensor:
        return store.load(version).pixel

    return {
        "servers killed": len(kills.servers),
        "workers killed": len(kills.restart) + len(kills.takeover),
        **watcher.outcome(kills.accepted),
        "seconds until a job goes on": {
            "restart of the same machine": spread(kills.restart),
            "takeover by another machine": spread(kills.takeover),
        },
        "seconds until a killed server draws": spread(kills.servers),
        **{f"moves: {what}": n for what, n in compare(store.audit()[before:], kills.calls).items()},
        "images": len(responses.tally.images.pngs),
        "images mixed": wrong(responses.tally.images, store.load(BASE), table_of),
        "other than 200, a problem or a cut": responses.broken,
        "responses": dict(responses.tally.kinds),
    }


def _kill_workers(fleet: Fleet, watcher: Watcher, kills: Kills, times: int, *, is_restarted: bool) -> None:
    """Run one job, and kill the worker that runs it `times` times."""
    chance = random.Random(len(kills.accepted))
    job = start(fleet, len(kills.accepted))
    kills.accepted.append(job)
    for attempt in range(1, times + 1):
        watcher.wait_attempt(job, attempt)
        time.sleep(chance.uniform(0.1, SOON_S))
        node = watcher.node(job, attempt)
        if node is None or watcher.get(job).ended is not None:
            break
        node.kill()
        killed = time.monotonic()
        has_ended = watcher.get(job).ended is not None
        if is_restarted or has_ended:
            node.start()
        if has_ended:
            break
        (kills.restart if is_restarted else kills.takeover).append(watcher.wait_attempt(job, attempt + 1) - killed)
        if not is_restarted:
            node.start()
    watcher.wait_ended(job)


@contextmanager
def _threads(fleet: Fleet, kills: Kills, count: int) -> Iterator[None]:
    """Kill servers, `count` times, and move the alias until the block ends."""
    over = Event()
    threads = [
        Thread(target=_kill_servers, args=(fleet, kills, count)),
        Thread(target=_move, args=(fleet, kills, over)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        threads[0].join()
        over.set()
        threads[1].join()


def _kill_servers(fleet: Fleet, kills: Kills, count: int) -> None:
    chance = random.Random(0)
    for number in range(count):
        time.sleep(chance.uniform(0.5, 4.0))
        node = fleet.servers[number % SERVERS]
        node.kill()
        killed = time.monotonic()
        node.start()
        node.wait_ready()
        kills.servers.append(time.monotonic() - killed)


def _move(fleet: Fleet, kills: Kills, over: Event) -> None:
    """Move the alias on a server at random: a call that it does not answer may have moved it."""
    chance, store = random.Random(1), fleet.store()
    clients = [fleet.client(number) for number in range(SERVERS)]
    while not over.wait(MOVE_EVERY_S):
        server = chance.randrange(SERVERS)
        names = [m.version for m in store.versions(20) if (m.job or "") in kills.accepted]
        target = chance.choice([*names, BASE])
        kills.calls.append(call(clients[server], server, f"/codebooks/{target}/activate"))
    for client in clients:
        client.close()
