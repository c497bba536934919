"""Answers that come late or never: a share of all creates in the bucket, while the alias moves and jobs run.

Every call has a key of its own, whose name is in the audit: a move that was applied twice would be there twice.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.scale.audit import Call, call, compare, is_own
from benchmarks.scale.figures import spread
from benchmarks.scale.fleet.fleet import CALL, SERVERS, Fleet
from benchmarks.scale.fleet.jobs import Watcher, start
from benchmarks.scale.fleet.line import LATE_S
from benchmarks.scale.fleet.versions import publish
from benchmarks.scale.moves import VERSIONS
from benchmarks.scale.outages import level

SHARE = 0.1
JOBS = 2


def measure(fleet: Fleet, calls: int) -> dict[str, Any]:
    """Make `calls` moves through all servers, and JOBS jobs, over the faulty line."""
    line, store, watcher, accepted = fleet.line, fleet.store(), Watcher(fleet), list[str]()
    assert line is not None
    versions, before = publish(store, VERSIONS), store.active().epoch
    line.faults.clear()
    line.creates, line.faulty = 0, SHARE

    def move(server: int) -> list[Call]:
        chance, made = random.Random(server), list[Call]()
        with fleet.client(server) as http:
            for number in range(server, calls, SERVERS):
                path = f"/codebooks/{chance.choice(versions)}/activate"
                made.append(call(http, server, path, key=CALL.format(number)))
        return made

    with ThreadPoolExecutor(SERVERS) as pool:
        moving = [pool.submit(move, server) for server in range(SERVERS)]
        for number in range(JOBS):
            accepted.append(start(fleet, number))
            watcher.wait_ended(accepted[-1])
        made = [one for job in moving for one in job.result()]
    line.faulty = 0.0
    time.sleep(LATE_S + 1.0)  # the last one may be carried out late
    level(fleet, store.active().epoch)
    audit = store.audit()[before:]
    names = Counter(record["moved_by"] for record in audit[1:] if is_own(record))
    outcome = watcher.outcome(accepted)
    return {
        "creates": line.creates,
        "faults": dict(line.faults),
        "calls": len(made),
        "applied twice": sum(count > 1 for count in names.values()),
        **compare(audit, made),
        **outcome,
        "seconds of a call": spread([one.done - one.sent for one in made]),
        "refusals": dict(Counter(str(one.status) for one in made if one.has_failed)),
    }
