"""Load generators: a closed loop of callers, and open-loop Poisson arrivals.

Every response is checked: anything but a PNG with status 200 counts as failed. A call that is refused (429) is retried
after its Retry-After, as clients do.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from statistics import quantiles

import httpx2

PROMPTS = (
    "a red apple",
    "a cat on a blue background",
    "a dog covered in snow in the twemoji style on a green background",
    "two keys",
    "a hat in the noto style",
    "a pear and a star on a yellow background",
    "a glass of milk",
    "a picture of an owl, in the fluent style, on a grey background, please",
)
HEADERS = {"Accept": "image/png"}
PATIENCE_S = 600.0


@dataclass
class Load:
    """Results of a load, per call: seconds to the whole PNG, time of its arrival, and (prompt, seed, PNG).

    refused: number of 429 responses; the seconds of such a call count from its first attempt.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    took_s: float = 0.0
    ends: list[float] = field(default_factory=list)
    pngs: list[tuple[str, int, bytes]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return images per second, and percentiles of the latency in ms."""
        cuts = quantiles(self.seconds, n=100, method="inclusive")
        return {
            "images": len(self.seconds),
            "refused": self.refused,
            "failed": self.failed,
            "images_per_s": len(self.seconds) / self.took_s,
            **{f"p{p}_ms": 1e3 * cuts[p - 1] for p in (50, 95, 99)},
        }

    def rate(self, begin_s: float, end_s: float) -> float:
        """Return images per second between two times, in seconds since the first image."""
        first = min(self.ends)
        return sum(begin_s < end - first < end_s for end in self.ends) / (end_s - begin_s)


def calls(count: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """Return `count` (prompt, seed) pairs: the same for every server and load."""
    return ((PROMPTS[number % len(PROMPTS)], number) for number in range(first, first + count))


def varied() -> Iterator[tuple[str, int]]:
    """Endless (prompt, seed) pairs without repetition, under prompts of many lengths."""
    return ((f"{prompt}{' please' * (seed % 40)}", seed) for prompt, seed in calls(sys.maxsize))


def closed_loop(url: str, clients: int, pairs: Iterable[tuple[str, int]]) -> Load:
    """Let `clients` request the (prompt, seed) pairs between them; `pairs` may be endless."""

    async def run(ask: Ask) -> None:
        left = iter(pairs)

        async def client() -> None:
            for prompt, seed in left:
                await ask(prompt, seed)

        await asyncio.gather(*(client() for _ in range(clients)))

    return asyncio.run(_measured(url, run))


def poisson(url: str, rate: float, pairs: Iterable[tuple[str, int]]) -> Load:
    """Request the pairs at random times, `rate` per second on average; the times are the same in every run."""
    gaps = random.Random(0)

    async def run(ask: Ask) -> None:
        tasks = []
        for prompt, seed in pairs:
            tasks.append(asyncio.create_task(ask(prompt, seed)))
            await asyncio.sleep(gaps.expovariate(rate))
        await asyncio.gather(*tasks)

    return asyncio.run(_measured(url, run))


class Ask:
    """A call that requests one image and records it in a Load."""

    def __init__(self, http: httpx2.AsyncClient, load: Load) -> None:
        self._http, self._load = http, load

    async def __call__(self, prompt: str, seed: int) -> None:
        """Request one image, with retries for up to PATIENCE_S."""
        began = time.perf_counter()
        try:
            while (answer := await self._post(prompt, seed)).status_code == HTTPStatus.TOO_MANY_REQUESTS:
                self._load.refused += 1
                if time.perf_counter() - began > PATIENCE_S:
                    break
                await asyncio.sleep(float(answer.headers["Retry-After"]))
        except httpx2.HTTPError:
            self._load.failed += 1
            return
        if answer.status_code != 200 or not answer.content.startswith(b"\x89PNG"):
            self._load.failed += 1
            return
        self._load.seconds.append(time.perf_counter() - began)
        self._load.ends.append(time.time())
        self._load.pngs.append((prompt, seed, answer.content))

    def _post(self, prompt: str, seed: int) -> Awaitable[httpx2.Response]:
        return self._http.post("/generate", json={"prompt": prompt, "seed": seed}, headers=HEADERS)


async def _measured(url: str, run: Callable[[Ask], Coroutine[None, None, None]]) -> Load:
    load = Load()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as http:
        began = time.perf_counter()
        await run(Ask(http, load))
        load.took_s = time.perf_counter() - began
    return load
