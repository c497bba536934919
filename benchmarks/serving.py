"""Serving benchmark against plain transformers servers, with the same weights and prompts, in turn in one run.

(a) FastAPI and the `generate` of transformers, one image at a time; (b) the same in closed batches of up to 8; (b2)
with the language model compiled; (c) Safe-CB, which also judges every image. Each serves a closed loop of 1, 8 and 32
callers and Poisson arrivals at 50, 80 and 95 % of the capacity of (b). On a GPU, where (a) and (b) are far slower than
(c), each serves only the closed loops that the figures need, (c) also of 64 and 128 callers.

`python -m benchmarks.serving` writes docs/results/serving.{json,md,png}; with `--model random:janus-pro-1b --device
cuda`, serving-janus-pro-1b.*: the published geometry on one GPU, in bfloat16.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.load import Load, calls, closed_loop, poisson
from benchmarks.results import circumstances, table, write
from benchmarks.servers import Running, running
from benchmarks.steps import step_costs

SERVERS = {"a": "transformers, one at a time", "b": "transformers, closed batches", "b2": "b, compiled", "c": "Safe-CB"}
ARRIVED_AT = {"b", "b2", "c"}  # (a) would only fall behind
MODES = {"a": "single", "b": "batched", "b2": "compiled"}


@dataclass(frozen=True)
class Loads:
    """Loads of one kind of device.

    closed: by server, how many images in a closed loop, by the number of callers; shares: of what (b) can do at most,
    at which images are requested at random, `arrivals` of them; warm: how many images before all of that.
    """

    closed: Mapping[str, Mapping[int, int]]
    shares: tuple[float, ...]
    arrivals: int
    warm: int


_BATCHED = {1: 24, 8: 96, 32: 192}
LOADS = {
    "cpu": Loads(
        {"a": {1: 24, 8: 32, 32: 64}, "b": _BATCHED, "b2": _BATCHED, "c": _BATCHED},
        (0.5, 0.8, 0.95),
        arrivals=100,
        warm=16,
    ),
    "cuda": Loads(
        {"a": {1: 2}, "b": {32: 32}, "b2": {32: 32}, "c": {1: 6, 8: 16, 32: 64, 64: 128, 128: 256}},
        (),
        arrivals=0,
        warm=0,
    ),
}


@dataclass(frozen=True)
class Subject:
    """The model that is served, by its name in SAFECB_MODEL, and a device: "cpu" or "cuda"."""

    model: str = "embedded"
    device: str = "cpu"

    @property
    def page(self) -> str:
        """The name of the files with the results."""
        return "serving" if self == Subject() else f"serving-{re.split('[:/]', self.model)[-1]}"

    @property
    def loads(self) -> Loads:
        """The loads of its device."""
        return LOADS[self.device]


@contextmanager
def server(name: str, folder: Path, subject: Subject = Subject()) -> Iterator[Running]:
    """Run one of SERVERS."""
    log = folder / f"{name}.log"
    if name != "c":
        baseline = ["benchmarks.baseline", "--mode", MODES[name]]
        with running([*baseline, "--model", subject.model, "--device", subject.device], log) as process:
            yield process
        return
    settings = {
        "SAFECB_HOME": str(folder / "home"),
        "SAFECB_PORT": "0",
        "SAFECB_MODEL": subject.model,
        "SAFECB_DEVICE": subject.device,
    }
    with running(["cli.main", "serve"], log, settings) as supervisor:
        serving = next(p for p in supervisor.process.children(recursive=True) if "app.server" in p.cmdline())
        yield Running(supervisor.url, serving)


def measure(names: list[str], folder: Path, subject: Subject) -> dict[str, Any]:
    """Put every server under every load, closed loops first: the arrival rates follow from (b)."""
    results: dict[str, Any] = {name: {"closed": {}, "poisson": {}} for name in names}
    for name in names:
        with server(name, folder, subject) as running_server:
            _warm(running_server.url, subject)
            loads = {}
            for clients, count in subject.loads.closed[name].items():
                loads[clients] = closed_loop(running_server.url, clients, calls(count))
                results[name]["closed"][clients] = _print(name, f"{clients} callers", loads[clients])
            results[name]["memory_mb"] = running_server.memory_mb()
            results[name]["device_memory_mb"] = device_memory_mb(subject.device)
            memory = "  ".join(f"{what} {mb:.0f} MB" for what, mb in _memory(results[name]).items())
            print(f"{name:3s} {memory}", flush=True)  # as it goes: a run may be cut short
            if name == "c":
                results[name]["differing_images"] = differing(loads)
    if not subject.loads.shares:
        return results
    most = max(figures["images_per_s"] for figures in results["b"]["closed"].values())
    with ExitStack() as up:
        # All servers simultaneously, each load in turn: a machine that slows down does so for all of them.
        urls = {name: up.enter_context(server(name, folder, subject)).url for name in names if name in ARRIVED_AT}
        for url in urls.values():
            _warm(url, subject)
        for share in subject.loads.shares:
            for name, url in urls.items():
                load = poisson(url, share * most, calls(subject.loads.arrivals))
                results[name]["poisson"][share] = _print(name, f"{share:.0%} of {most:.1f}/s", load)
    return results


def _warm(url: str, subject: Subject) -> None:
    """Warm up everything that is compiled at its first use."""
    closed_loop(url, 8, calls(subject.loads.warm))


def device_memory_mb(device: str) -> float:
    """Return the used memory of the GPU, by all processes, in MB; 0 for the CPU."""
    if device == "cpu":
        return 0.0
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / 1e6


def differing(loads: Mapping[int, Load]) -> int:
    """Return the number of (prompt, seed) pairs whose files differ between loads."""
    files: dict[tuple[str, int], set[bytes]] = {}
    for load in loads.values():
        for prompt, seed, png in load.pngs:
            files.setdefault((prompt, seed), set()).add(png)
    return sum(len(pngs) > 1 for pngs in files.values())


def ratios(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that the bars are about: (c) beside (a) and (b), wherever both had the same load."""
    c = results["c"]
    ratios = {
        f"throughput of c over {other}, {clients} callers": c["closed"][clients]["images_per_s"]
        / figures["images_per_s"]
        for other in results
        if other != "c"
        for clients, figures in results[other]["closed"].items()
    }
    ratios["latency of c over a, 1 caller, p50"] = c["closed"][1]["p50_ms"] / results["a"]["closed"][1]["p50_ms"]
    for share, figures in results["b"]["poisson"].items():
        ratios[f"latency of b over c, Poisson at {share:.0%}, p50"] = figures["p50_ms"] / c["poisson"][share]["p50_ms"]
    return ratios


def _print(name: str, label: str, load: Load) -> dict[str, float]:
    figures = load.figures()
    print(f"{name:3s} {label:20s} {figures['images_per_s']:6.2f}/s  p50 {figures['p50_ms']:6.0f} ms", flush=True)
    return figures


def rows_of(results: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return one row per server and load."""
    return [
        {"server": SERVERS[name], "load": load, **figures}
        for name, loads in results.items()
        for load, figures in loads[kind].items()
    ]


def page(results: Mapping[str, Any], costs: list[dict[str, float]], about: Mapping[str, Any], name: str) -> list[str]:
    """Return the Markdown page."""
    lines = ["# Serving", "", "Written by `python -m benchmarks.serving`; times include HTTP and the PNG file.", ""]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    lines += ["", "## Ratios", "", *table([{"what": k, "ratio": v} for k, v in ratios(results).items()])]
    lines += ["", "## Closed loop", "", *table(rows_of(results, "closed"))]
    if arrivals := rows_of(results, "poisson"):
        lines += ["", "## Poisson arrivals (at shares of the capacity of b)", "", *table(arrivals)]
    lines += ["", "## Decode step by batch size", "", *table(costs), ""]
    memory = [{"server": SERVERS[name], **_memory(loads)} for name, loads in results.items()]
    lines += ["## Memory after the closed loops, MB", "", *table(memory), ""]
    lines += [f"Images of c that differ between batches: {results['c']['differing_images']}.", ""]
    return [*lines, f"![Serving]({name}.png)"]


def _memory(loads: Mapping[str, Any]) -> dict[str, float]:
    return {"resident": loads["memory_mb"], "of the GPU": loads["device_memory_mb"]}


def picture(results: Mapping[str, Any], costs: list[dict[str, float]]) -> Figure:
    """Return the plots of throughput by callers, latency under Poisson arrivals, and cost of an image by batch size."""
    arriving = any(loads["poisson"] for loads in results.values())
    panels = ["closed", "arrivals", "cost"] if arriving else ["closed", "cost"]
    figure = Figure(figsize=(4.4 * len(panels), 4), layout="constrained")
    axes_of: dict[str, Axes] = figure.subplot_mosaic([panels])  # type: ignore[list-item]
    closed, cost = axes_of["closed"], axes_of["cost"]
    for name, loads in results.items():
        closed.plot(
            list(loads["closed"]), [f["images_per_s"] for f in loads["closed"].values()], "o-", label=SERVERS[name]
        )
        if values := loads["poisson"]:
            axes = axes_of["arrivals"]
            axes.plot(list(values), [f["p50_ms"] for f in values.values()], "o-", label=f"{SERVERS[name]}, p50")
            axes.plot(list(values), [f["p95_ms"] for f in values.values()], ".:", label=f"{SERVERS[name]}, p95")
            axes.set(xlabel="load, share of the capacity of b", ylabel="ms", ylim=(0, None), title="Poisson arrivals")
    closed.set(xscale="log", xlabel="callers", ylabel="images / s", title="Closed loop")
    cost.plot([c["images"] for c in costs], [c["image_ms"] for c in costs], "o-", label="measured")
    floor = [c["image_ms"] * c["share_of_floor"] for c in costs]
    cost.plot([c["images"] for c in costs], floor, "k--", label="this machine's floor")
    cost.set(xscale="log", xlabel="batch size, images", ylabel="ms per image", ylim=(0, None), title="Cost of drawing")
    for axes in axes_of.values():
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="a,b,b2,c", help="comma-separated subset; a, b and c are required")
    parser.add_argument("--model", default="embedded", help="as in SAFECB_MODEL")
    parser.add_argument("--device", default="cpu", choices=list(LOADS))
    options = parser.parse_args()
    subject, about = Subject(options.model, options.device), {"model": options.model, **circumstances(options.device)}
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.servers.split(","), Path(folder), subject)
    costs = step_costs(subject.model, subject.device)
    everything = {"about": about, "ratios": ratios(results), "steps": costs, "servers": results}
    write(subject.page, everything, page(results, costs, about, subject.page), picture(results, costs))


if __name__ == "__main__":
    main()
