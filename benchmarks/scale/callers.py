"""Callers of a fleet that has faults: a thread a server, which requests images with pauses and tallies responses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import httpx2

from benchmarks.answers import CUT, PAUSE_S, PNG, PROMISED, REFUSED, Tally, kind_of
from benchmarks.load import calls
from benchmarks.scale.fleet.fleet import SERVERS, Fleet

SEEDS = 2  # so that few images need to be drawn again to compare
DRAWN = "200 image"


@dataclass
class Responses:
    """Responses to requests for images. `seconds`: of each image, under the active version or a version by name."""

    tally: Tally = field(default_factory=Tally)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"active": [], "by name": []})
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Responses that are no image, and requests without a response."""
        return sum(self.tally.kinds.values()) - self.tally.kinds[DRAWN]

    @property
    def broken(self) -> int:
        """Responses that the API does not document."""
        return sum(n for kind, n in self.tally.kinds.items() if kind not in PROMISED | {REFUSED, CUT})


@contextmanager
def callers(fleet: Fleet, pinned: str | None = None) -> Iterator[Responses]:
    """Request images of all servers until the block ends; every second one of the version `pinned`, if there is one."""
    responses, over = Responses(), Event()
    threads = [Thread(target=_call, args=(fleet, number, pinned, responses, over)) for number in range(SERVERS)]
    for thread in threads:
        thread.start()
    try:
        yield responses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _call(fleet: Fleet, server: int, pinned: str | None, responses: Responses, over: Event) -> None:
    with fleet.client(server) as http:
        for turn, (prompt, seed) in enumerate(calls(10**9, server)):
            if over.wait(PAUSE_S):
                return
            body = {"prompt": prompt, "seed": seed % SEEDS}
            is_pinned = pinned is not None and turn % 2 == 1
            began = time.monotonic()
            try:
                answer = http.post(
                    "/generate", json=body | ({"codebook": pinned} if is_pinned else {}), headers={"Accept": PNG}
                )
                kind = kind_of(answer)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                kind = REFUSED
            except httpx2.HTTPError:
                kind = CUT
            responses.tally.kinds[kind] += 1
            if kind == DRAWN:
                responses.seconds["by name" if is_pinned else "active"].append(time.monotonic() - began)
                responses.tally.images.pngs.append((prompt, seed % SEEDS, answer.content))
            elif kind not in (REFUSED, CUT):
                responses.reasons[answer.text[:200]] += 1
