"""Overload benchmark: throughput and refusals under Poisson arrivals below and above the server's capacity.

A call that is refused (429) is retried after its Retry-After.

`python -m benchmarks.overload` writes docs/results/overload.{json,md,png}.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.load import Load, calls, closed_loop, poisson, varied
from benchmarks.results import circumstances, table, write
from benchmarks.serving import server

SHARES = (0.8, 1.3, 2.0)
ROUNDS = 2
ARRIVE_S = 25.0
BEGINS_S = 5.0  # of these do not count: the queue fills


def measure(folder: Path) -> list[dict[str, float]]:
    """Load the server at each share of its closed-loop throughput, in ROUNDS turns."""
    rows = []
    with server("c", folder) as running:
        closed_loop(running.url, 32, calls(320))
        prompts = varied()
        for _ in range(ROUNDS):
            most = closed_loop(running.url, 32, islice(prompts, 320)).figures()["images_per_s"]
            for share in SHARES:
                load, rate = overloaded(running.url, most, prompts, share)
                rows.append({"asked_per_s": share * most, "drawn_per_s": rate, **counts(load)})
                print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    return rows


def overloaded(url: str, about: float, prompts: Iterator[tuple[str, int]], share: float = 1.3) -> tuple[Load, float]:
    """Load the server beyond its capacity for ARRIVE_S; return the load and the images per second.

    about: throughput in a closed loop, which is a little higher than under Poisson arrivals.
    """
    load = poisson(url, share * about, islice(prompts, round(share * about * ARRIVE_S)))
    return load, load.rate(BEGINS_S, ARRIVE_S)


def counts(load: Load) -> dict[str, float]:
    """Return the figures of the load without its images per second, which include the tail."""
    return {name: figure for name, figure in load.figures().items() if name != "images_per_s"}


def page(rows: list[dict[str, float]], about: dict[str, Any]) -> list[str]:
    """Return the Markdown page."""
    lines = [
        "# Overload",
        "",
        "Written by `python -m benchmarks.overload`: Poisson arrivals at shares of the throughput of 32 callers.",
        "",
    ]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    return [*lines, "", *table(rows), "", "![Overload](overload.png)"]


def picture(rows: list[dict[str, float]]) -> Figure:
    """Return the plot of images per second by the rate of requests."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["asked_per_s"] for row in rows], [row["drawn_per_s"] for row in rows], "o")
    axes.set(xlabel="asked for, a second", ylabel="drawn, a second", xlim=(0, None), ylim=(0, None))
    return figure


def main() -> None:
    """Command line."""
    about = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    write("overload", {"about": about, "loads": rows}, page(rows, about), picture(rows))


if __name__ == "__main__":
    main()
