"""Swap benchmark: latency of 32 callers under 1,000 publishes at 10 per second.

Every version has a pixel table of its own, and every image is decoded again here, under the version that it names, and
compared. The server is loaded in turn without and with swaps; without, the same publisher writes to another store, so
that its own load is equal. `python -m benchmarks.swap` writes docs/results/swap.{json,md,png}.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx2
import torch
from matplotlib.figure import Figure
from PIL import Image
from redis import Redis

from app.background import housekeeping as upkeep
from benchmarks.load import PROMPTS, Load, closed_loop
from benchmarks.results import circumstances, table, write
from benchmarks.servers import Running
from benchmarks.serving import server
from codebook.live import LiveCodebooks
from codebook.store import CodebookStore
from codebook.value import Codebook
from core.settings import Settings
from core.wire import RedisNames
from engine.model import ImageRequest
from engine.png import to_bytes
from engine.registry import load_model

CLIENTS, EVERY_S = 32, 0.1
WARM_UP = 2000  # images, which allocate most of the memory; then WARM_UP_SWAPS publishes fill the slots for versions
WARM_UP_SWAPS, TURNS = 50, 4
SEEDS = 4  # per prompt


@dataclass(frozen=True)
class Phase:
    """One stretch of load: its results, and the time of each publication (seconds since the epoch)."""

    swaps: bool
    load: Load
    published: dict[str, float]


def signed(base: Codebook, number: int) -> Codebook:
    """Return the base codebook with its codes rotated by `number`: every version decodes differently."""
    return replace(base, version="draft", pixel=base.pixel.roll(number + 1, 0))


def publish(folder: Path, first: int, count: int, hint: str | None, published: Any) -> None:  # noqa: ANN401 - a queue
    """Publish `count` versions into a store, one every EVERY_S; put each one's name and time of activation."""
    torch.set_num_threads(1)
    store = CodebookStore(folder)
    base, redis, channel = store.load("v0"), None, ""
    if hint is not None:
        settings = Settings.from_environ({"SAFECB_HOME": str(folder.parent), "SAFECB_REDIS_URL": hint})
        redis, channel = Redis.from_url(hint), RedisNames.of(settings).hints
    began = time.monotonic()
    for number in range(first, first + count):
        time.sleep(max(0.0, began + (number - first) * EVERY_S - time.monotonic()))
        manifest = store.publish(
            signed(base, number), parent="v0", job=f"swap-{number}", round=1, figures={}, gates={}, report={}, fence=1
        )
        store.activate(manifest.version, by="benchmark")
        published.put((manifest.version, time.time()))
        if redis is not None:
            redis.publish(channel, manifest.version)


def phase(running: Running, store: Path, hint: str | None, first: int, count: int) -> Phase:
    """Load the server while `count` versions are published to `store`."""
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    publisher = context.Process(target=publish, args=(store, first, count, hint, channel))
    publisher.start()
    published = dict([channel.get(timeout=60)])  # it is at work
    load = closed_loop(running.url, CLIENTS, pairs_while(publisher.is_alive))
    while len(published) < count:
        published |= dict([channel.get(timeout=60)])
    publisher.join()
    return Phase(hint is not None, load, published)


def pairs_while(goes_on: Callable[[], bool]) -> Iterator[tuple[str, int]]:
    """The (prompt, seed) pairs in a cycle, while `goes_on()`."""
    for pair in itertools.cycle(itertools.product(PROMPTS, range(SEEDS))):
        if not goes_on():
            return
        yield pair


def wrong(load: Load, base: Codebook, table_of: Callable[[str], torch.Tensor]) -> int:
    """Return the number of images that differ from their prompt and seed decoded under the table of their version."""
    model = load_model("embedded", "cpu", "float32")
    torch.set_num_threads(1)  # as the server decodes
    pairs = sorted({(prompt, seed) for prompt, seed, _ in load.pngs})
    requests = [ImageRequest(prompt, model.facts.sampling(seed), base) for prompt, seed in pairs]
    tokens = dict(zip(pairs, model.draw(requests), strict=True))
    count = 0
    for prompt, seed, png in load.pngs:
        version, pixels = opened(png)
        right = to_bytes(model.decode(tokens[prompt, seed][None], table_of(version)))[0]
        count += right.numpy().tobytes() != pixels
    return count


def table_of(base: Codebook, version: str) -> torch.Tensor:
    """Return the pixel table of a version of `publish`."""
    number = int(version[1:])
    return base.pixel if number == 0 else signed(base, number - 1).pixel


def opened(png: bytes) -> tuple[str, bytes]:
    """Return the version that a PNG names, and its pixels."""
    with Image.open(BytesIO(png)) as image:
        image.load()
        return str(image.text["codebook"]), image.tobytes()  # type: ignore[attr-defined]


def resident_times(log: Path) -> dict[str, float]:
    """Return the first time that the server's log names each version active, in seconds since the epoch."""
    lines = re.findall(r"^(\S+ \S+) \S+ codebook (v\d+) is active", log.read_text(encoding="utf-8"), re.MULTILINE)
    lines.reverse()  # a rollback repeats the line
    return {version: datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp() for when, version in lines}


def flips(store: Path, times: int = 1000) -> list[float]:
    """Return the seconds that a reader of the store takes to follow an activation between resident versions."""
    moved = CodebookStore(store)
    live, taken = LiveCodebooks(moved), list[float]()
    for number in range(times):
        moved.activate(f"v{1 + number % 2}", by="benchmark")
        began = time.perf_counter()
        live.refresh()
        taken.append(time.perf_counter() - began)
    return taken[2:]


def measure(publishes: int, folder: Path) -> dict[str, Any]:
    """Run the phases in turn and return the figures."""
    base = load_model("embedded", "cpu", "float32").base_codebook()
    quiet, each = folder / "elsewhere", publishes // TURNS
    CodebookStore(quiet).initialise(base, {})
    phases: list[Phase] = []
    with server("c", folder) as running:
        store, hint = folder / "home" / "store", running.process.environ()["SAFECB_REDIS_URL"]
        closed_loop(running.url, CLIENTS, itertools.islice(pairs_while(lambda: True), WARM_UP))
        phase(running, store, hint, 0, WARM_UP_SWAPS)
        memory = [at_rest(running)]
        for turn in range(TURNS):
            for where, channel in ((quiet, None), (store, hint)):
                phases.append(phase(running, where, channel, WARM_UP_SWAPS + turn * each, each))
                memory.append(at_rest(running))
        rollbacks = [roll_back(running.url) for _ in range(20)]
    swapped = [stretch for stretch in phases if stretch.swaps]
    published = {version: when for stretch in swapped for version, when in stretch.published.items()}
    resident = resident_times(folder / "c.log")
    return {
        "publishes": len(published),
        "images": sum(len(stretch.load.seconds) for stretch in phases),
        "failed": sum(stretch.load.failed for stretch in phases),
        "wrong": wrong(Load(pngs=[png for part in phases for png in part.load.pngs]), base, partial(table_of, base)),
        "skipped": sum(version not in resident for version in published),
        "latency": {"without swaps": latency(phases, False), "with swaps": latency(phases, True)},
        "publish to resident, ms": spread([1e3 * (resident[v] - at) for v, at in published.items() if v in resident]),
        "publish to first image, ms": spread([1e3 * taken for part in swapped for taken in first_images(part)]),
        "flip, ms": spread([1e3 * taken for taken in flips(store)]),
        "rollback, ms": spread([1e3 * taken for taken in rollbacks]),
        "memory, MB": memory,
    }


def at_rest(running: Running) -> float:
    """Return the memory of the server in MB after its next heap trim."""
    time.sleep(upkeep.EVERY_S + 1)
    return running.memory_mb()


def latency(phases: Sequence[Phase], swaps: bool) -> dict[str, float]:
    """Return percentiles of the latency over the phases of one kind."""
    return spread([1e3 * taken for part in phases if part.swaps == swaps for taken in part.load.seconds])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, p95, p99 and the maximum."""
    cuts = quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values), "n": len(values)}


def first_images(part: Phase) -> list[float]:
    """Return the seconds from each publication to the first image under that version, if there was one."""
    first: dict[str, float] = {}
    for when, (_, _, png) in zip(part.load.ends, part.load.pngs, strict=True):
        version, _ = opened(png)
        first.setdefault(version, when)
    return [first[version] - when for version, when in part.published.items() if version in first]


def roll_back(url: str) -> float:
    """Return the seconds of POST /codebooks/rollback; the next image must be drawn under its version."""
    with httpx2.Client(base_url=url, timeout=600) as http:
        began = time.perf_counter()
        moved = http.post("/codebooks/rollback", json={}).raise_for_status().json()
        took = time.perf_counter() - began
        drawn = http.post("/generate", json={"prompt": PROMPTS[0], "seed": 0}).raise_for_status()
        assert drawn.headers["X-Codebook-Version"] == moved["new"]["version"]
    return took


def page(results: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """Return the Markdown page."""
    lines = [
        "# Swapping",
        "",
        f"Written by `python -m benchmarks.swap`: {CLIENTS} callers, {1 / EVERY_S:.0f} a second.",
        "",
    ]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    counts = {key: value for key, value in results.items() if isinstance(value, int)}
    ratio = results["latency"]["with swaps"]["p99"] / results["latency"]["without swaps"]["p99"]
    memory = results["memory, MB"]
    rows = [{"what": f"latency {kind}, ms", **figures} for kind, figures in results["latency"].items()]
    rows += [{"what": key, **value} for key, value in results.items() if isinstance(value, dict) and "p99" in value]
    lines += ["", *table([counts]), "", f"p99 with swaps / without: {ratio:.3f}", "", *table(rows), ""]
    lines += [
        f"Memory of the server at rest, MB, at first and after each stretch: {', '.join(f'{m:.0f}' for m in memory)}.",
        "",
    ]
    return [*lines, "![Swapping](swap.png)"]


def picture(phases: Mapping[str, Any]) -> Figure:
    """Return the plot of latency percentiles with and without swaps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, figures in phases["latency"].items():
        axes.plot(["p50", "p95", "p99", "max"], [figures[p] for p in ("p50", "p95", "p99", "max")], "o-", label=kind)
    axes.set(ylabel="ms", ylim=(0, None), title=f"{CLIENTS} callers")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishes", type=int, default=1000)
    about = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(parser.parse_args().publishes, Path(folder))
    write("swap", {"about": about, **results}, page(results, about), picture(results))


if __name__ == "__main__":
    main()
