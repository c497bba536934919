"""Callers who want every form of image, and a tally of all that they were answered.

A caller goes on until nobody listens any more. An answer is known by its status and form: "200 image", "503 problem",
or, where it is none of what the interface promises, by what it was.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx2

from benchmarks.load import Load, calls

PNG, JSON, EVENTS = "image/png", "application/json", "text/event-stream"
PROBLEM = "application/problem+json"
PROMISED = frozenset({"200 image", "503 problem", "429 problem"})
REFUSED, CUT = "connection refused", "connection cut"  # no answers
PAUSE_S = 0.1  # before a caller who met nobody asks again


@dataclass
class Tally:
    """Answers by kind, and the images as (prompt, seed, PNG)."""

    kinds: Counter[str] = field(default_factory=Counter)
    images: Load = field(default_factory=Load)

    @property
    def broken(self) -> dict[str, int]:
        """The answers that the interface does not promise."""
        return {kind: count for kind, count in self.kinds.items() if kind not in PROMISED | {REFUSED, CUT}}


async def ask(url: str, clients: int, tally: Tally, is_over: Callable[[], bool]) -> None:
    """Let `clients` ask the server at `url` for images, each the next once answered, until `is_over`."""
    pairs = calls(10**9)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await asyncio.gather(*(_client(http, form, pairs, tally, is_over) for form in _forms(clients)))


def _forms(clients: int) -> Iterator[str]:
    return ((PNG, JSON, EVENTS)[number % 3] for number in range(clients))


async def _client(
    http: httpx2.AsyncClient, form: str, pairs: Iterator[tuple[str, int]], tally: Tally, is_over: Callable[[], bool]
) -> None:
    while not is_over():
        prompt, seed = next(pairs)
        try:
            answer = await http.post("/generate", json={"prompt": prompt, "seed": seed % 8}, headers={"Accept": form})
            kind = kind_of(answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            kind = REFUSED
        except httpx2.HTTPError:
            kind = CUT
        tally.kinds[kind] += 1
        if kind == "200 image" and form == PNG:
            tally.images.pngs.append((prompt, seed % 8, answer.content))
        if kind != "200 image":
            await asyncio.sleep(PAUSE_S)


def kind_of(answer: httpx2.Response) -> str:
    """What an answer to POST /generate is."""
    form = answer.headers.get("content-type", "").partition(";")[0]
    if form == PROBLEM:
        whole = {"type", "title", "status", "detail"} <= answer.json().keys() and "retry-after" in answer.headers
        return f"{answer.status_code} problem" if whole else f"{answer.status_code} incomplete problem"
    if answer.status_code == 200 and _is_whole(form, answer):
        return "200 image"
    if form == EVENTS and _last_event(answer) == "error":
        return "503 problem"  # a stream's status is out before its image is drawn
    return f"{answer.status_code} {form}"


def _is_whole(form: str, answer: httpx2.Response) -> bool:
    if form == PNG:
        return answer.content.startswith(b"\x89PNG") and answer.content.endswith(b"IEND\xaeB`\x82")
    if form == JSON:
        return bool(answer.json()["images"][0]["b64_png"])
    return form == EVENTS and _last_event(answer) == "image"


def _last_event(answer: httpx2.Response) -> str:
    """The name of a stream's last event, whose data are JSON; "" where it was cut."""
    events = [event for event in answer.text.split("\n\n") if event.strip() and not event.startswith(":")]
    lines = dict(line.partition(": ")[::2] for line in events[-1].splitlines()) if events else {}
    try:
        json.loads(lines.get("data", ""))
    except ValueError:
        return ""
    return lines.get("event", "") if answer.text.endswith("\n\n") else ""
