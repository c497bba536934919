"""Shares of traffic and revocations: a canary's share of many callers, and the time until no server draws a version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2

from benchmarks.scale.audit import call
from benchmarks.scale.figures import spread
from benchmarks.scale.fleet.fleet import KEY, SERVERS, Fleet, headers
from benchmarks.scale.fleet.versions import BASE, publish
from benchmarks.scale.moves import VERSIONS
from benchmarks.scale.outages import level

SHARE = 0.1
DRAWN = 150  # real requests
PNG = {"Accept": "image/png"}
EVERY_S, BEYOND_S = 0.03, 0.3  # requests of a revoked version, and for how long after the first that is refused
LONGEST_S = 30.0
REFUSED = 422


def measure(fleet: Fleet, requests: int, revocations: int) -> dict[str, Any]:
    """Count a canary's share of `requests`, and revoke versions `revocations` times."""
    versions = publish(fleet.store(), VERSIONS)
    share = _share(fleet, versions[1], requests)
    lags: list[float] = []
    drawn_after = 0
    for number in range(revocations):
        version = versions[2 + number % 2]
        seconds, after = _revoke(fleet, version, number % SERVERS, is_active=number % 2 == 1)
        lags += seconds
        drawn_after += after
    return {
        **share,
        "revocations": revocations,
        "seconds until no server draws it": spread(lags),
        "images under it after that": drawn_after,
    }


def _share(fleet: Fleet, canary: str, requests: int) -> dict[str, Any]:
    """Give the canary SHARE of the traffic; count who gets it, and compare DRAWN real images."""
    with fleet.client(0) as http:
        call(http, 0, f"/codebooks/{BASE}/activate")
        answer = http.put("/codebooks/traffic", json={BASE: 1 - SHARE, canary: SHARE}).raise_for_status()
    level(fleet, answer.json()["new"]["epoch"])
    record = fleet.store().active()
    prompts = [f"a red apple, number {number}" for number in range(requests)]
    versions = [record.drawn_for(f"{KEY}\n{prompt}") for prompt in prompts]
    with ThreadPoolExecutor(SERVERS) as pool:
        step = max(1, requests // DRAWN)
        drawn = [*zip(prompts[::step], versions[::step], strict=True)][:DRAWN]
        parts = pool.map(partial(_differing, fleet), [(n, drawn[n::SERVERS]) for n in range(SERVERS)])
        differing = sum(parts)
    with fleet.client(1) as http:
        http.delete("/codebooks/traffic").raise_for_status()
    return {
        "requests": requests,
        "share of the canary": versions.count(canary) / requests,
        "images drawn": len(drawn),
        "images of another version than the share says": differing,
    }


def _differing(fleet: Fleet, part: tuple[int, Sequence[tuple[str, str]]]) -> int:
    """Draw the prompts on one server; return how many were of another version."""
    server, drawn = part
    count = 0
    with fleet.client(server) as http:
        for prompt, version in drawn:
            answer = http.post("/generate", json={"prompt": prompt, "seed": 1}, headers=PNG).raise_for_status()
            count += answer.headers["X-Codebook-Version"] != version
    return count


def _revoke(fleet: Fleet, version: str, server: int, *, is_active: bool) -> tuple[list[float], int]:
    """Revoke a version on one server; return each server's seconds until it refuses, and the images after."""
    with fleet.client(server) as http:
        made = call(http, server, f"/codebooks/{version if is_active else BASE}/activate")
        level(fleet, fleet.store().active().epoch)
        lags, after = asyncio.run(_drawing(fleet, version, http, server))
        restored = call(http, server, f"/codebooks/{version}/restore")
    assert not made.has_failed and restored.status == 200, (made, restored)
    return lags, after


async def _drawing(fleet: Fleet, version: str, http: httpx2.Client, server: int) -> tuple[list[float], int]:
    """Request a version by name on all servers all the time, and revoke it."""
    begun, ready = asyncio.Event(), asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(_request(node.url, version, ready, begun)) for node in fleet.servers]
        for _ in fleet.servers:
            await ready.acquire()
        begun.set()
        revoked = await asyncio.to_thread(call, http, server, f"/codebooks/{version}/revoke")
    lags, after = [], 0
    for answers in (task.result() for task in requests):
        refused = min(sent for sent, status in answers if status == REFUSED)
        lags.append(max(0.0, refused - revoked.done))
        after += sum(sent > refused for sent, status in answers if status == 200)
    return lags, after


async def _request(url: str, version: str, ready: asyncio.Semaphore, begun: asyncio.Event) -> list[tuple[float, int]]:
    """Request a version by name until BEYOND_S after the first refusal; return when each was sent, and its status.

    Once before the revocation, and every EVERY_S from its beginning.
    """
    answers: list[tuple[float, int]] = []
    async with httpx2.AsyncClient(base_url=url, timeout=LONGEST_S, headers=headers()) as http, asyncio.TaskGroup() as g:

        async def one() -> None:
            sent = time.time()
            body = {"prompt": "a red apple", "seed": 1, "codebook": version}
            answer = await http.post("/generate", json=body, headers=PNG)
            answers.append((sent, answer.status_code))

        await one()  # it is resident
        ready.release()
        await begun.wait()
        ends = time.monotonic() + LONGEST_S
        while time.monotonic() < ends:
            g.create_task(one())
            await asyncio.sleep(EVERY_S)
            if any(status == REFUSED for _, status in answers):
                ends = min(ends, time.monotonic() + BEYOND_S)
    return answers
