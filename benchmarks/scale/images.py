"""Images under moves: each is compared with the image of the version that its header names, drawn before the moves."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import httpx2

from benchmarks.load import PROMPTS
from benchmarks.scale.audit import Call, call, compare
from benchmarks.scale.fleet.fleet import SERVERS, Fleet, headers
from benchmarks.scale.fleet.versions import publish
from benchmarks.scale.moves import ROLLBACKS, VERSIONS
from benchmarks.swap import opened

SEEDS = 2  # a prompt
CALLERS = 16  # a server
MOVES = 200
PATIENCE_S = 600.0
Pair = tuple[str, int]
PNG = {"Accept": "image/png"}


@dataclass
class Drawn:
    """Images so far. own: those of each version by prompt and seed; versions: how many each was named by."""

    own: dict[tuple[str, Pair], bytes]
    count: int = 0
    mixed: int = 0
    failed: int = 0
    refused: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)

    def take(self, answer: httpx2.Response, pair: Pair) -> None:
        """Compare one answer."""
        if answer.status_code == 429:
            self.refused += 1
            return
        self.count += 1
        if answer.status_code != 200:
            self.failed += 1
            self.reasons.add(answer.text[:200])
            return
        version = answer.headers["X-Codebook-Version"]
        self.versions[version] += 1
        self.mixed += self.own.get((version, pair)) != answer.content


def measure(fleet: Fleet, images: int, moves: int = MOVES) -> dict[str, Any]:
    """Draw `images` images on all servers while the alias moves `moves` times."""
    versions = publish(fleet.store(), VERSIONS)
    pairs = [*itertools.product(PROMPTS, range(SEEDS))]
    drawn = Drawn(asyncio.run(_own_images(fleet, versions, pairs)))
    alike = sum(len({opened(drawn.own[version, pair])[1] for version in versions}) < len(versions) for pair in pairs)
    before, calls = fleet.store().active().epoch, list[Call]()
    mover = Thread(target=_move, args=(fleet, drawn, images, moves, versions, calls))
    began = time.monotonic()
    mover.start()
    asyncio.run(_draw(fleet, drawn, images, itertools.cycle(pairs)))
    took = time.monotonic() - began
    mover.join()
    audit = fleet.store().audit()[before:]
    return {
        "images": drawn.count,
        "mixed": drawn.mixed,
        "failed": drawn.failed,
        "refused and retried": drawn.refused,
        "images per second": drawn.count / took,
        "pairs alike under two versions": alike,
        "versions drawn": dict(drawn.versions.most_common()),
        **{f"moves: {what}": n for what, n in compare(audit, calls).items()},
        "reasons": sorted(drawn.reasons),
    }


async def _own_images(fleet: Fleet, versions: Sequence[str], pairs: Sequence[Pair]) -> dict[tuple[str, Pair], bytes]:
    """Draw every pair under every version by name, each on one of the servers."""
    jobs = iter([(version, pair) for version in versions for pair in pairs])
    own: dict[tuple[str, Pair], bytes] = {}

    async def caller(http: httpx2.AsyncClient) -> None:
        for version, (prompt, seed) in jobs:
            body = {"prompt": prompt, "seed": seed, "codebook": version}
            answer = await http.post("/generate", json=body, headers=PNG)
            own[version, (prompt, seed)] = answer.raise_for_status().content

    await _on_all(fleet, caller)
    return own


async def _draw(fleet: Fleet, drawn: Drawn, images: int, pairs: Iterator[Pair]) -> None:
    """Let CALLERS callers of each server draw in a closed loop."""

    async def caller(http: httpx2.AsyncClient) -> None:
        while drawn.count < images:
            pair = next(pairs)
            try:
                answer = await http.post("/generate", json={"prompt": pair[0], "seed": pair[1]}, headers=PNG)
            except httpx2.HTTPError as error:
                drawn.count, drawn.failed = drawn.count + 1, drawn.failed + 1
                drawn.reasons.add(type(error).__name__)
                continue
            drawn.take(answer, pair)
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["Retry-After"]))

    await _on_all(fleet, caller)


async def _on_all(fleet: Fleet, caller: Any) -> None:  # noqa: ANN401  (a coroutine function of a client)
    async def server(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, headers=headers()) as http:
            await asyncio.gather(*(caller(http) for _ in range(CALLERS)))

    await asyncio.gather(*(server(node.url) for node in fleet.servers))


def _move(fleet: Fleet, drawn: Drawn, images: int, moves: int, versions: Sequence[str], calls: list[Call]) -> None:
    """Move the alias whenever another share of the images is there, on a server at random."""
    chance = random.Random(0)
    clients = [fleet.client(number) for number in range(SERVERS)]
    while (made := sum(one.record is not None for one in calls)) < moves and drawn.count < images:
        if drawn.count * moves < made * images:
            time.sleep(0.01)
            continue
        server, version = chance.randrange(SERVERS), chance.choice(versions)
        path = "/codebooks/rollback" if chance.random() < ROLLBACKS else f"/codebooks/{version}/activate"
        calls.append(call(clients[server], server, path))
    for client in clients:
        client.close()
