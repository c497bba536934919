"""An improve job beside callers on the same cores: what either costs the other.

In one run of `safecb serve`: two callers without pause, then a job alone, both together, and the callers once more.
Both jobs are the same request, each drawn anew. `python -m benchmarks.jobs.beside` writes
docs/results/beside.{json,md}; killed and called again with the same `--work`, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from benchmarks.load import Load, calls, closed_loop
from benchmarks.results import circumstances, table, write
from benchmarks.serving import server
from core.settings import Settings

CALLERS, WARM, ALONE_S, POLL_S = 2, 20, 30.0, 1.0
CATEGORY, IMAGES = "weapons", 400  # of the job; the least counts of prompts make more images of it
MOST_JOB, MOST_CALL = 3.0, 1.5  # the bars: times of what either takes alone


class Job:
    """An improve job on a running server: one round from v0, which stays active."""

    def __init__(self, http: httpx2.Client) -> None:
        body = {"seed": 1, "categories": [CATEGORY], "budget": {"images": IMAGES}, "activate": False}
        self._http, self._answer = http, http.post("/improve", json=body).raise_for_status().json()

    def goes_on(self) -> bool:
        """Whether it has not ended yet."""
        self._answer = self._http.get(self._answer["links"]["self"]).raise_for_status().json()
        return self._answer["ended"] is None

    def figures(self) -> dict[str, Any]:
        """Seconds, images and reason of the end. Raises RuntimeError for a job that failed."""
        job = self._answer
        if job["status"] != "finished":
            raise RuntimeError(f"the job ended as {job['status']}: {job['error']}")
        ended, created = (datetime.fromisoformat(job[name]) for name in ("ended", "created"))
        images = job["plan"]["images_done"]
        return {"s": (ended - created).total_seconds(), "images": images, "reason": job["result"]["reason"]}


def while_true(condition: Callable[[], bool]) -> Iterator[tuple[str, int]]:
    """The (prompt, seed) pairs of the load while the condition holds; it is called every POLL_S."""
    looked = time.monotonic()
    for pair in calls(10**6):
        if time.monotonic() - looked >= POLL_S:
            if not condition():
                return
            looked = time.monotonic()
        yield pair


def callers_alone(http: httpx2.Client) -> dict[str, Any]:
    """The callers by themselves, for ALONE_S."""
    end = time.monotonic() + ALONE_S
    return _calls(closed_loop(str(http.base_url), CALLERS, while_true(lambda: time.monotonic() < end)))


def job_alone(http: httpx2.Client) -> dict[str, Any]:
    """The job by itself."""
    job = Job(http)
    while job.goes_on():
        time.sleep(POLL_S)
    return job.figures()


def together(http: httpx2.Client) -> dict[str, Any]:
    """The callers for as long as the job takes."""
    job = Job(http)
    load = closed_loop(str(http.base_url), CALLERS, while_true(job.goes_on))
    return {**job.figures(), **_calls(load)}


PARTS: Mapping[str, Callable[[httpx2.Client], dict[str, Any]]] = {
    "callers before": callers_alone,
    "job alone": job_alone,
    "together": together,
    "callers after": callers_alone,
}


def kept(work: Path, name: str, http: httpx2.Client) -> dict[str, Any]:
    """The part of this name and its circumstances: as `work` has it, else made and kept there."""
    path = work / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        about = circumstances()
        path.write_text(json.dumps({"about": about, **PARTS[name](http)}), encoding="utf-8")
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    print(name, {key: value for key, value in part.items() if key != "about"}, flush=True)
    return part


def ratios(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The job's time and the calls', together, over what they take alone; of the callers alone both parts count."""
    alone = parts["callers before"], parts["callers after"]
    calls_of = {name: parts["together"][name] / median(part[name] for part in alone) for name in ("p50_ms", "p95_ms")}
    job = parts["together"]["s"] / parts["job alone"]["s"]
    return {"job": job, "call, p50": calls_of["p50_ms"], "call, p95": calls_of["p95_ms"]}


def page(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The Markdown page."""
    lines = ["# An improve job beside callers", "", "Written by `python -m benchmarks.jobs.beside`.", ""]
    about = {**parts["job alone"]["about"], "load": " ".join(str(part["about"]["load"]) for part in parts.values())}
    about |= {"share of the job": Settings.from_environ(os.environ).job_share, "callers, without pause": CALLERS}
    lines += [f"{name}: {value}  " for name, value in about.items()]
    bars = {"job": MOST_JOB, "call, p50": MOST_CALL}
    rows = [{"time": name, "ratio": ratio, "bar": bars.get(name, "")} for name, ratio in ratios(parts).items()]
    lines += ["", "## Together, over alone", "", *table(rows), "", "## Parts, in this order", ""]
    heads = {"s": "job, s", "images": "its images", "calls": "calls", "failed": "failed", "p50_ms": "p50, ms"}
    heads |= {"p95_ms": "p95, ms"}
    return lines + table(
        [{"part": name, **{head: part.get(key, "") for key, head in heads.items()}} for name, part in parts.items()]
    )


def _calls(load: Load) -> dict[str, Any]:
    figures = load.figures()
    return {"calls": figures.pop("images"), **figures}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the parts that are over")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, server("c", Path(folder)) as running:
        closed_loop(running.url, CALLERS, calls(WARM))
        with httpx2.Client(base_url=running.url, timeout=60.0) as http:
            parts = {name: kept(work, name, http) for name in PARTS}
    write("beside", {"ratios": ratios(parts), "parts": parts}, page(parts))


if __name__ == "__main__":
    main()
