"""Half an hour at 95 % of what the server can do: whether it loses a request or grows.

`python -m benchmarks.soak` writes docs/benchmarks/soak.{json,md,png}.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.load import calls, closed_loop, poisson
from benchmarks.results import circumstances, table, write
from benchmarks.serving import server

SHARE = 0.95
STRETCH_S = 60.0  # memory is read between stretches
WARM_UP = 5  # stretches that do not count


def measure(minutes: int, folder: Path) -> dict[str, Any]:
    """Load the server for that long, after WARM_UP; memory growth is from the first five minutes to the last five."""
    with server("c", folder) as running:
        closed_loop(running.url, 32, calls(320))
        most = closed_loop(running.url, 32, varied(640, 0)).figures()["images_per_s"]
        rate = SHARE * most
        stretches = []
        count = round(rate * STRETCH_S)
        for minute in range(1, minutes + 1 + WARM_UP):
            figures = poisson(running.url, rate, varied(count, minute * count)).figures()
            stretches.append({**figures, "memory_mb": running.memory_mb()})
            told = f"{figures['images_per_s']:.2f}/s  {figures['failed']} failed  {stretches[-1]['memory_mb']:.0f} MB"
            print(told, flush=True)
    counted = stretches[WARM_UP:]
    memory = [stretch["memory_mb"] for stretch in counted]
    return {
        "images": sum(stretch["images"] for stretch in counted),
        "failed": sum(stretch["failed"] for stretch in counted),
        "images_per_s asked for": rate,
        "memory growth": fmean(memory[-5:]) / fmean(memory[:5]) - 1.0,
        "minutes": counted,
    }


def varied(count: int, first: int) -> Iterator[tuple[str, int]]:
    """Images that nobody has asked for before, under prompts of many lengths."""
    return ((f"{prompt}{' please' * (seed % 40)}", seed) for prompt, seed in calls(count, first))


def page(found: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    lines = ["# Soak", "", f"Written by `python -m benchmarks.soak`: Poisson arrivals at {SHARE:.0%} of the most.", ""]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    summary = {key: value for key, value in found.items() if key != "minutes"}
    return [*lines, "", *table([summary]), "", *table(found["minutes"]), "", "![Soak](soak.png)"]


def picture(found: dict[str, Any]) -> Figure:
    """Memory and latency by minute."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    memory, latency = figure.subplots(1, 2)
    memory.plot([minute["memory_mb"] for minute in found["minutes"]])
    memory.set(xlabel="minute", ylabel="MB", ylim=(0, None), title="Memory of the server")
    for percentile in ("p50_ms", "p99_ms"):
        latency.plot([minute[percentile] for minute in found["minutes"]], label=percentile)
    latency.set(xlabel="minute", ylim=(0, None), title="Latency, ms")
    latency.legend()
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30)
    about = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(parser.parse_args().minutes, Path(folder))
    write("soak", {"about": about, **found}, page(found, about), picture(found))


if __name__ == "__main__":
    main()
