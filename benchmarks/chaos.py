"""Chaos benchmark of the running service: stops under load, kills at random moments, and the faults of field reports.

Stops: SIGTERM to `safecb serve` under 32 callers, half of the time with a second to drain. Kills: `kill -9` of server,
worker or Redis under callers while improve jobs run one after the other. Faults: the tests marked `fault`, by line.

`python -m benchmarks.chaos` writes docs/results/chaos.{json,md}; it exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any
from xml.etree import ElementTree

import httpx2
import psutil
import torch

from benchmarks.answers import CUT, Tally, ask
from benchmarks.results import circumstances, table, write
from benchmarks.short_job import ROUNDS
from benchmarks.swap import wrong
from codebook.store import CodebookStore
from records.journal import Journal

CALLERS, KILL_CALLERS = 32, 16
DRAINS_S = ("30", "1")  # in turn
LANES = 2  # one service starts, on one core, while the other is stopped
VICTIMS = ("redis-server", "benchmarks.short_job", "app.server")  # by a part of the command line
PATIENCE_S = 180.0
ROOT = Path(__file__).parent.parent


@contextmanager
def supervisor(
    module: Sequence[str], home: Path, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Run `python -m module` with its state in `home` until the block ends; gives its process, URL and log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log, settings = home.with_suffix(".log"), {"SAFECB_HOME": str(home), "SAFECB_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=output, stderr=output, env={**os.environ, **settings, **environ}
        )
    try:
        _wait(lambda: b"is ready at" in log.read_bytes()[start:], f"the server is ready: {log}")
        yield process, url, log
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait(true: Any, what: str) -> None:  # noqa: ANN401 - any call
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.05)


def stops(folder: Path, runs: int) -> dict[str, Any]:
    """Stop the service under load, `runs` times, at different moments; LANES services at a time."""
    with ThreadPoolExecutor(LANES) as lanes:
        each = list(lanes.map(lambda run: _stop(folder / f"stop-{run}", run), range(runs)))
    kinds = sum((tally.kinds for tally, _, _, _ in each), Counter[str]())
    return {
        "runs": runs,
        "answers": dict(kinds),
        "other than 200 or a problem": sum(sum(tally.broken.values()) for tally, _, _, _ in each),
        "cut": kinds[CUT],
        "tracebacks": sum(log.count("Traceback") for _, _, _, log in each),
        "exit codes other than 0": sum(code != 0 for _, _, code, _ in each),
        "longest stop, s": max(took_s for _, took_s, _, _ in each),
    }


def _stop(home: Path, run: int) -> tuple[Tally, float, int, str]:
    """Stop one service under load; return the responses, the seconds it took, its exit code and its log."""
    tally, after_s = Tally(), random.Random(run).uniform(0.2, 2.0)
    with supervisor(["cli.main", "serve"], home, SAFECB_DRAIN_S=DRAINS_S[run % len(DRAINS_S)]) as (process, url, log):
        took_s = asyncio.run(_stop_under_load(process, url, tally, after_s))
    return tally, took_s, process.returncode, log.read_text(encoding="utf-8", errors="replace")


async def _stop_under_load(process: subprocess.Popen[bytes], url: str, tally: Tally, after_s: float) -> float:
    """Send SIGTERM after `after_s` under CALLERS; return the seconds until the service has ended."""
    asking = asyncio.create_task(ask(url, CALLERS, tally, lambda: process.poll() is not None))
    await asyncio.sleep(after_s)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, PATIENCE_S)
    took = time.monotonic() - began
    await asking
    return took


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kill a part of the service at `count` random moments under load; return the state of versions and jobs."""
    tally, over, accepted = Tally(), Event(), list[str]()
    home, chance, killed = folder / "kills", random.Random(0), Counter[str]()
    with supervisor(["benchmarks.short_job"], home) as (process, url, log):
        asking = Thread(target=lambda: asyncio.run(ask(url, KILL_CALLERS, tally, over.is_set)))
        improving = Thread(target=_improve, args=(url, accepted, over))
        asking.start()
        improving.start()
        for number in range(count):
            if number % 4:  # else it may hit a service that is on its way back from the last one
                _wait(lambda: _is_open(url), "the server is back")
            time.sleep(chance.uniform(0.5, 4.0))
            victim = VICTIMS[number % len(VICTIMS)]
            _victim(process, victim).kill()
            killed[victim] += 1
        over.set()
        asking.join()
        improving.join()
        _wait(lambda: _is_open(url) and not _unfinished(home), "all jobs have ended")
    text = log.read_text(encoding="utf-8", errors="replace")
    return {"killed": dict(killed), "answers": dict(tally.kinds)} | outcome(home, accepted, tally) | {
        "other than 200 or a problem": sum(tally.broken.values()),
        "tracebacks": text.count("Traceback"),
    }  # fmt: skip


def _victim(process: subprocess.Popen[bytes], part: str) -> psutil.Process:
    """Return the child whose command line contains `part`, once it runs again."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if part in " ".join(child.cmdline()):
                    return child
        time.sleep(0.05)
    raise TimeoutError(f"{part} did not come back")


def _improve(url: str, accepted: list[str], over: Event) -> None:
    """Start one improve job after another."""
    with httpx2.Client(base_url=url, timeout=30) as http:
        while not over.wait(0.2):
            with suppress(httpx2.HTTPError):
                answer = http.post("/improve", json={"seed": len(accepted)})
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])


def _is_open(url: str) -> bool:
    with suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/health/ready").status_code == 200
    return False


def _unfinished(home: Path) -> bool:
    return any(job.ended is None for job in Journal(home / "jobs").list())


def outcome(home: Path, accepted: Sequence[str], tally: Tally) -> dict[str, int]:
    """Count lost, duplicated and mixed results, by the files of the store and the journal."""
    store, jobs = CodebookStore(home / "store"), {job.id: job for job in Journal(home / "jobs").list()}
    published: dict[str | None, list[int]] = defaultdict(list)
    for manifest in store.versions():
        published[manifest.job].append(manifest.round or 0)
    rounds = {job.id: sorted(r["round"] for r in job.rounds if r["version"] in store.names()) for job in jobs.values()}
    each = list(range(1, ROUNDS + 1))

    @cache
    def table_of(version: str) -> torch.Tensor:
        return store.load(version).pixel

    return {
        "jobs": len(jobs),
        "attempts": sum(job.attempt for job in jobs.values()),
        "jobs lost": sum(id not in jobs for id in accepted) + sum(j.status != "finished" for j in jobs.values()),
        "jobs run twice": sum(len(published[id]) > len(set(published[id])) for id in jobs),
        "versions": len(store.names()),
        "versions lost": sum(rounds[id] != each or sorted(set(published[id])) != each for id in jobs),
        "versions damaged": sum(not _loads(store, version) for version in store.names()),
        "images": len(tally.images.pngs),
        "images mixed": wrong(tally.images, store.load("v0"), table_of),
    }


def _loads(store: CodebookStore, version: str) -> bool:
    with suppress(Exception):
        return store.load(version).version == version
    return False


def faults(folder: Path) -> list[dict[str, Any]]:
    """Run the tests marked `fault`, most of which wait for something, six at a time; one row a line."""
    report = folder / "faults.xml"
    command = [sys.executable, "-m", "pytest", "-m", "fault", "-q", "-n", "6", "--dist", "worksteal"]
    subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
    return by_line(ElementTree.parse(report).getroot())


def by_line(report: ElementTree.Element) -> list[dict[str, Any]]:
    """Sum up pytest's JUnit report by the lines of field reports, which tests/conftest.py adds as properties."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for case in report.iter("testcase"):
        marks = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "passed" if not marks else "skipped" if marks == {"skipped"} else "failed"
        for note in case.iter("property"):
            if note.get("name") == "fault":
                outcomes[str(note.get("value"))] += Counter(
                    tests=1, **{outcome: 1}, ms=round(1e3 * float(case.get("time", 0)))
                )
    return [
        {
            "line": line,
            **{name: results[name] for name in ("tests", "passed", "failed", "skipped")},
            "s": results["ms"] / 1e3,
        }
        for line, results in sorted(outcomes.items())
    ]


def missed(results: Mapping[str, Any]) -> list[str]:
    """Return the bars that are missed, in words."""
    zero = {
        "stops": ("other than 200 or a problem", "cut", "tracebacks", "exit codes other than 0"),
        "kills": ("jobs lost", "jobs run twice", "versions lost", "versions damaged", "images mixed",
                  "other than 200 or a problem"),
    }  # fmt: skip
    wrong = [f"{part}: {results[part][name]} {name}" for part, names in zero.items() for name in names
             if results[part][name]]  # fmt: skip
    return wrong + [f"{row['line']}: {row['failed']} failed" for row in results["faults"] if row["failed"]]


def page(results: Mapping[str, Any]) -> list[str]:
    """Return the Markdown page."""
    lines = ["# Chaos", "", "Written by `python -m benchmarks.chaos`. Bars that are missed: "
             f"{'; '.join(missed(results)) or 'none'}.", ""]  # fmt: skip
    lines += [f"{key}: {value}  " for key, value in results["about"].items()]
    for part, title in (("stops", f"SIGTERM under {CALLERS} callers"), ("kills", "kill -9 at random moments")):
        rows = [{"figure": name, "value": _cell(value)} for name, value in results[part].items()]
        lines += ["", f"## {title}", "", *table(rows)]
    return [*lines, "", "## Faults by line", "", *table(results["faults"])]


def _cell(value: object) -> object:
    return ", ".join(f"{n} {name}" for name, n in sorted(value.items())) if isinstance(value, dict) else value


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="stops, and kills")
    runs = parser.parse_args().runs
    began = time.monotonic()
    results: dict[str, Any] = {"about": circumstances()}
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor() as together:  # either waits now and then
            parts = {part.__name__: together.submit(part, Path(folder), runs) for part in (stops, kills)}
        results |= {name: part.result() for name, part in parts.items()}
        print(results, flush=True)
        results["faults"] = faults(Path(folder))
    results["about"]["minutes"] = round((time.monotonic() - began) / 60, 1)
    write("chaos", results, page(results))
    print("\n".join(page(results)))
    return 1 if missed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
