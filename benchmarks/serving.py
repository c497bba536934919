"""Speed of serving, beside what one would write without Safe-CB, on the same weights and prompts, in turn in one run.

(a) FastAPI and the `generate` of transformers, one image at a time; (b) the same in closed batches of up to 8; (b2)
with the language model compiled; (c) Safe-CB, which also judges every image. Each serves a closed loop of 1, 8 and 32
callers (on a GPU also 64 and 128) and Poisson arrivals at 50, 80 and 95 % of what (b) can do at most.

`python -m benchmarks.serving` writes docs/benchmarks/serving.{json,md,png}; with `--model random:janus-pro-1b --device
cuda`, serving-janus-pro-1b.*: the published geometry on one GPU, in bfloat16.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.load import Load, calls, closed_loop, poisson
from benchmarks.results import circumstances, table, write
from benchmarks.servers import Running, running
from benchmarks.steps import step_costs

SERVERS = {"a": "transformers, one at a time", "b": "transformers, closed batches", "b2": "b, compiled", "c": "Safe-CB"}
MODES = {"a": "single", "b": "batched", "b2": "compiled"}
SHARES = (0.5, 0.8, 0.95)
IMAGES = {  # in a closed loop, by callers: of (a), which takes long, and of servers that batch
    "cpu": ({1: 24, 8: 32, 32: 64}, {1: 24, 8: 96, 32: 192}),
    "cuda": ({1: 4, 8: 8}, {1: 8, 8: 32, 32: 128, 64: 256, 128: 512}),
}
ARRIVALS = 100


@dataclass(frozen=True)
class Subject:
    """The model that is served, by its name in SAFECB_MODEL, and a device: "cpu" or "cuda"."""

    model: str = "embedded"
    device: str = "cpu"

    @property
    def page(self) -> str:
        """The name of the files with the results."""
        return "serving" if self == Subject() else f"serving-{re.split('[:/]', self.model)[-1]}"

    def images(self, name: str) -> dict[int, int]:
        """How many images one of SERVERS draws in a closed loop, by the number of callers."""
        alone, batched = IMAGES[self.device]
        return alone if name == "a" else batched


@contextmanager
def server(name: str, folder: Path, subject: Subject = Subject()) -> Iterator[Running]:
    """Run one of SERVERS."""
    log = folder / f"{name}.log"
    if name != "c":
        baseline = ["benchmarks.baseline", "--mode", MODES[name]]
        with running([*baseline, "--model", subject.model, "--device", subject.device], log) as found:
            yield found
        return
    settings = {
        "SAFECB_HOME": str(folder / "home"),
        "SAFECB_PORT": "0",
        "SAFECB_MODEL": subject.model,
        "SAFECB_DEVICE": subject.device,
    }
    with running(["app.main", "serve"], log, settings) as found:
        serving = next(p for p in found.process.children(recursive=True) if "app.server" in p.cmdline())
        yield Running(found.url, serving)


def measure(names: list[str], folder: Path, subject: Subject) -> dict[str, Any]:
    """Put every server under every load, closed loops first, so that the rates of arrivals follow from (b)."""
    found: dict[str, Any] = {name: {"closed": {}, "poisson": {}} for name in names}
    for name in names:
        with server(name, folder, subject) as running_server:
            closed_loop(running_server.url, 8, calls(16))  # what is compiled is compiled
            loads = {}
            for clients, count in subject.images(name).items():
                loads[clients] = closed_loop(running_server.url, clients, calls(count))
                found[name]["closed"][clients] = _told(name, f"{clients} callers", loads[clients])
            found[name]["memory_mb"] = running_server.memory_mb()
            found[name]["device_memory_mb"] = device_memory_mb(subject.device)
            if name == "c":
                found[name]["differing_images"] = differing(loads)
    most = max(figures["images_per_s"] for figures in found["b"]["closed"].values())
    for name in names:
        if name == "a":
            continue  # it would only fall behind
        with server(name, folder, subject) as running_server:
            closed_loop(running_server.url, 8, calls(16))
            for share in SHARES:
                load = poisson(running_server.url, share * most, calls(ARRIVALS))
                found[name]["poisson"][share] = _told(name, f"{share:.0%} of {most:.1f}/s", load)
    return found


def device_memory_mb(device: str) -> float:
    """What is taken of a GPU's memory, by whomever, in MB; 0 for the CPU."""
    if device == "cpu":
        return 0.0
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / 1e6


def differing(loads: Mapping[int, Load]) -> int:
    """How many images of the same prompt and seed came out as other files under other loads."""
    files: dict[tuple[str, int], set[bytes]] = {}
    for load in loads.values():
        for prompt, seed, png in load.pngs:
            files.setdefault((prompt, seed), set()).add(png)
    return sum(len(found) > 1 for found in files.values())


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures that the bars are about: (c) beside (a) and (b)."""
    a, b, c = found["a"]["closed"], found["b"], found["c"]
    return {
        "throughput of c over a, 8 callers": c["closed"][8]["images_per_s"] / a[8]["images_per_s"],
        **{
            f"throughput of c over b, {clients} callers": c["closed"][clients]["images_per_s"] / drawn["images_per_s"]
            for clients, drawn in b["closed"].items()
        },
        "latency of c over a, 1 caller, p50": c["closed"][1]["p50_ms"] / a[1]["p50_ms"],
        **{
            f"latency of b over c, Poisson at {share:.0%}, p50": b["poisson"][share]["p50_ms"]
            / c["poisson"][share]["p50_ms"]
            for share in SHARES
        },
    }


def _told(name: str, load: str, found: Load) -> dict[str, float]:
    figures = found.figures()
    print(f"{name:3s} {load:20s} {figures['images_per_s']:6.2f}/s  p50 {figures['p50_ms']:6.0f} ms", flush=True)
    return figures


def rows_of(found: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """One row a server and load."""
    return [
        {"server": SERVERS[name], "load": load, **figures}
        for name, loads in found.items()
        for load, figures in loads[kind].items()
    ]


def page(found: Mapping[str, Any], costs: list[dict[str, float]], about: Mapping[str, Any], name: str) -> list[str]:
    """The Markdown page."""
    lines = ["# Serving", "", "Written by `python -m benchmarks.serving`; times include HTTP and the PNG file.", ""]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    lines += ["", "## Ratios", "", *table([{"what": k, "ratio": v} for k, v in ratios(found).items()])]
    lines += ["", "## Closed loop (callers who ask again once answered)", "", *table(rows_of(found, "closed"))]
    lines += ["", "## Poisson arrivals (at shares of what b can do at most)", "", *table(rows_of(found, "poisson"))]
    lines += ["", "## A step by images drawn at once", "", *table(costs), ""]
    memory = [{"server": SERVERS[name], **_memory(loads)} for name, loads in found.items()]
    lines += ["## Memory after the closed loops, MB", "", *table(memory), ""]
    lines += [f"Images of c that came out otherwise in company: {found['c']['differing_images']}.", ""]
    return [*lines, f"![Serving]({name}.png)"]


def _memory(loads: Mapping[str, Any]) -> dict[str, float]:
    return {"resident": loads["memory_mb"], "of the GPU": loads["device_memory_mb"]}


def picture(found: Mapping[str, Any], costs: list[dict[str, float]]) -> Figure:
    """Throughput by callers, latency under Poisson arrivals, and the cost of an image by images at once."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    closed, arrivals, cost = figure.subplots(1, 3)
    for name, loads in found.items():
        closed.plot(
            list(loads["closed"]), [f["images_per_s"] for f in loads["closed"].values()], "o-", label=SERVERS[name]
        )
        if loads["poisson"]:
            values = loads["poisson"]
            arrivals.plot(list(values), [f["p50_ms"] for f in values.values()], "o-", label=f"{SERVERS[name]}, p50")
            arrivals.plot(list(values), [f["p95_ms"] for f in values.values()], ".:", label=f"{SERVERS[name]}, p95")
    closed.set(xscale="log", xlabel="callers", ylabel="images / s", title="Closed loop")
    arrivals.set(xlabel="load, share of what b can do", ylabel="ms", ylim=(0, None), title="Poisson arrivals")
    cost.plot([c["images"] for c in costs], [c["image_ms"] for c in costs], "o-", label="measured")
    floor = [c["image_ms"] * c["share_of_floor"] for c in costs]
    cost.plot([c["images"] for c in costs], floor, "k--", label="this machine's floor")
    cost.set(xscale="log", xlabel="images at once", ylabel="ms an image", ylim=(0, None), title="Cost of drawing")
    for axes in (closed, arrivals, cost):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="a,b,b2,c", help="which of them, parted by commas; a, b and c are needed")
    parser.add_argument("--model", default="embedded", help="as in SAFECB_MODEL")
    parser.add_argument("--device", default="cpu", choices=list(IMAGES))
    asked = parser.parse_args()
    subject, about = Subject(asked.model, asked.device), {"model": asked.model, **circumstances(asked.device)}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.servers.split(","), Path(folder), subject)
    costs = step_costs(subject.model, subject.device)
    everything = {"about": about, "ratios": ratios(found), "steps": costs, "servers": found}
    write(subject.page, everything, page(found, costs, about, subject.page), picture(found, costs))


if __name__ == "__main__":
    main()
