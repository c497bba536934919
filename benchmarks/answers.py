"""Callers that request images in every media type, and a tally of the responses.

A caller goes on until the server is gone. The kind of a response is its status and form, such as "200 image" and
"503 problem"; kinds that the API does not document are counted as broken.
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
REFUSED, CUT = "connection refused", "connection cut"  # no responses
PAUSE_S = 0.1  # before the next request after a failed one


@dataclass
class Tally:
    """Responses by kind, and the images as (prompt, seed, PNG)."""

    kinds: Counter[str] = field(default_factory=Counter)
    images: Load = field(default_factory=Load)

    @property
    def broken(self) -> dict[str, int]:
        """The responses that the API does not document."""
        return {kind: count for kind, count in self.kinds.items() if kind not in PROMISED | {REFUSED, CUT}}


async def ask(url: str, clients: int, tally: Tally, is_over: Callable[[], bool]) -> None:
    """Let `clients` request images from the server at `url` in a closed loop until `is_over`."""
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
    """Return the kind of a response to POST /generate."""
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
    """Return the name of a stream's last event, whose data are JSON; "" if the stream was cut."""
    events = [event for event in answer.text.split("\n\n") if event.strip() and not event.startswith(":")]
    lines = dict(line.partition(": ")[::2] for line in events[-1].splitlines()) if events else {}
    try:
        json.loads(lines.get("data", ""))
    except ValueError:
        return ""
    return lines.get("event", "") if answer.text.endswith("\n\n") else ""
