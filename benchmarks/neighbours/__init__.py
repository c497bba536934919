"""Neighbour benchmark: images a second while other processes use cores of the same machine.

A neighbour is a process of its own session that computes without pause, on one core. The loads take turns with none,
one and as many as there are cores, so that each turn compares what the machine is worth at that time. `python -m
benchmarks.neighbours` writes docs/results/neighbours.{json,md}.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import calls, closed_loop
from benchmarks.results import circumstances, table, write
from benchmarks.serving import server
from engine.scheduler.thread_budget import count_cores

CALLERS, TURNS, SECONDS, WARM_UP = (1, 32), 3, 10.0, 100
SETTLED_S = 6.0  # of drawing, in which the number of threads follows
LOOP = "while True: pass"


@dataclass(frozen=True)
class Stretch:
    """One stretch of a closed loop: callers, neighbours, images a second, median latency in seconds, failures."""

    callers: int
    neighbours: int
    rate: float
    p50_s: float
    failed: int


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Run so many processes that compute without pause."""
    running = [subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def stretch(url: str, callers: int, count: int) -> Stretch:
    """Load the server beside `count` neighbours, and measure once its threads have settled."""
    with neighbours(count):
        closed_loop(url, callers, pairs_for(SETTLED_S))
        load = closed_loop(url, callers, pairs_for(SECONDS))
    return Stretch(callers, count, len(load.seconds) / load.took_s, median(load.seconds), load.failed)


def pairs_for(seconds: float) -> Iterator[tuple[str, int]]:
    """(prompt, seed) pairs, for so many seconds."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, calls(sys.maxsize))


def measure(folder: Path) -> list[Stretch]:
    """All loads in turn, with each number of neighbours."""
    counts = sorted({0, 1, count_cores()})
    with server("c", folder) as running:
        closed_loop(running.url, max(CALLERS), calls(WARM_UP))
        return [stretch(running.url, c, n) for _ in range(TURNS) for c in CALLERS for n in counts]


def figures(stretches: list[Stretch]) -> list[dict[str, Any]]:
    """A row for each load and number of neighbours: medians of the turns, and the ratio to none in the same turn."""
    rows = []
    for callers, count in sorted({(each.callers, each.neighbours) for each in stretches}):
        these = [each for each in stretches if (each.callers, each.neighbours) == (callers, count)]
        alone = [each for each in stretches if (each.callers, each.neighbours) == (callers, 0)]
        rows.append(
            {
                "callers": callers,
                "neighbours": count,
                "images/s": median(each.rate for each in these),
                "p50 ms": 1e3 * median(each.p50_s for each in these),
                "images/s, of those alone": median(a.rate / b.rate for a, b in zip(these, alone, strict=True)),
                "failed": sum(each.failed for each in these),
            }
        )
    return rows


def page(results: dict[str, Any]) -> list[str]:
    """The page in Markdown."""
    return [
        "# Results: neighbours on the same cores",
        "",
        f"`python -m benchmarks.neighbours`, {results['time']}: {results['device']}, {results['cores']} cores,",
        f"load {results['load']} at the start, torch {results['torch']}.",
        f"Embedded model, closed loops of {SECONDS:.0f} s in {TURNS} turns. A neighbour is a process that computes "
        "without pause on one core;",
        "with one neighbour on two cores three threads that compute share them. [Why](../explanation/engine.md).",
        "",
        *table(results["rows"]),
    ]


def main() -> None:
    """Measure and write the page."""
    about = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        rows = figures(measure(Path(folder)))
    results = about | {"cores": count_cores(), "rows": rows}
    write("neighbours", results, page(results))
