"""Soak benchmark: half an hour at 95 % of the server's capacity; counts lost requests and memory growth.

At that load the queue is full at times: a call that is refused (429) is retried after its Retry-After, and counts as
lost if it has no image after ten minutes.

`python -m benchmarks.soak` writes docs/results/soak.{json,md,png}.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.load import calls, closed_loop, poisson, varied
from benchmarks.overload import overloaded
from benchmarks.results import circumstances, table, write
from benchmarks.serving import server

SHARE = 0.95
STRETCH_S = 60.0  # memory is read between stretches
WARM_UP = 5  # stretches that do not count
OFTEN = 5  # stretches between two measurements of the capacity


def measure(minutes: int, folder: Path) -> dict[str, Any]:
    """Load the server for that long, after WARM_UP; memory growth is from the first five minutes to the last five."""
    with server("c", folder) as running:
        about = closed_loop(running.url, 32, calls(320)).figures()["images_per_s"]
        prompts = varied()
        stretches: list[dict[str, float]] = []
        lost = 0
        measured: deque[float] = deque(maxlen=3)
        for stretch in range(WARM_UP + minutes):
            if stretch % OFTEN == 0:  # machines slow down for minutes, and for moments: so the median
                load, most = overloaded(running.url, about, prompts)
                measured.append(most)
                lost += load.failed
            rate = SHARE * median(measured)
            figures = poisson(running.url, rate, islice(prompts, round(rate * STRETCH_S))).figures()
            stretches.append({"asked_per_s": rate, **figures, "memory_mb": running.memory_mb()})
            print("  ".join(f"{name} {value:.2f}" for name, value in stretches[-1].items()), flush=True)
    counted = stretches[WARM_UP:]
    memory = [stretch["memory_mb"] for stretch in counted]
    return {
        **{what: sum(stretch[what] for stretch in counted) for what in ("images", "refused", "failed")},
        "failed while measuring": lost,
        "memory growth": fmean(memory[-5:]) / fmean(memory[:5]) - 1.0,
        "minutes": counted,
    }


def page(results: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """Return the Markdown page."""
    rates = f"Poisson arrivals at {SHARE:.0%} of what it draws under overload"
    lines = ["# Soak", "", f"Written by `python -m benchmarks.soak`: {rates}.", ""]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    summary = {key: value for key, value in results.items() if key != "minutes"}
    return [*lines, "", *table([summary]), "", *table(results["minutes"]), "", "![Soak](soak.png)"]


def picture(results: dict[str, Any]) -> Figure:
    """Return the plot of memory and latency by minute."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    memory, latency = figure.subplots(1, 2)
    memory.plot([minute["memory_mb"] for minute in results["minutes"]])
    memory.set(xlabel="minute", ylabel="MB", ylim=(0, None), title="Memory of the server")
    for percentile in ("p50_ms", "p99_ms"):
        latency.plot([minute[percentile] for minute in results["minutes"]], label=percentile)
    latency.set(xlabel="minute", ylim=(0, None), title="Latency, ms")
    latency.legend()
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30)
    about = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(parser.parse_args().minutes, Path(folder))
    write("soak", {"about": about, **results}, page(results, about), picture(results))


if __name__ == "__main__":
    main()
