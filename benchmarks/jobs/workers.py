"""Time of a job's batches by the number of worker processes that share them on one machine.

Draws and judges PROMPTS images of the embedded model through the task folder of an improve job: one process alone, and
with assistants, each at one thread or at all cores. `python -m benchmarks.jobs.workers` writes
docs/results/workers.{json,md}. The results of all runs are compared byte for byte. OpenMP's threads spin as long as in
`safecb worker`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import circumstances, table, write
from codebook.tensors import content_hash
from core.wire import SPINNING
from engine.machine import machine_of
from engine.registry import load_model
from safety.runtime.model_runner import ModelRunner
from safety.runtime.progress import Cancelled
from safety.runtime.result_cache import ResultCache
from worker.assistant import assist
from worker.shared_tasks import SharedExecutor, TaskFolder

PROMPTS, BATCH, ROUNDS = 512, 64, 2
WORDS = ("a red apple", "a fox", "a teapot and a star", "a pizza covered in snow", "a pistol", "a cat")
OVER, READY = "over", "ready"


class UntilOver:
    """Progress of an assistant: cancels it once the file `over` is there."""

    def __init__(self, folder: Path) -> None:
        self._over = folder / OVER

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.runtime.progress.Progress."""
        if self._over.exists():
            raise Cancelled("the run is over")


def help_along(folder: Path) -> None:
    """Do tasks of the run in `folder` until it is over: an assistant worker."""
    progress = UntilOver(folder)
    runner = ModelRunner(load_model("embedded", "cpu", "auto"), ResultCache(folder), progress, BATCH)
    (folder / f"{READY}-{os.getpid()}").touch()
    with suppress(Cancelled):
        assist(runner, TaskFolder(folder / "tasks"), progress)


@contextmanager
def assistants(folder: Path, count: int, threads: int) -> Iterator[None]:
    """Run `count` assistants with `threads` threads each until the block ends."""
    command = [sys.executable, "-m", "benchmarks.jobs.workers", "--assist", str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes = [subprocess.Popen(command, env=environ) for _ in range(count)]
    try:
        while len(list(folder.glob(f"{READY}-*"))) < count:
            time.sleep(0.05)
        yield
    finally:
        (folder / OVER).touch()
        for process in processes:
            process.wait(60)


def run(workers: int, threads: int) -> tuple[float, str]:
    """Seconds for the batches with so many workers, and the hash of what was drawn."""
    torch.set_num_threads(threads)
    texts = [f"{WORDS[i % len(WORDS)]}, on a blue background, number {i}" for i in range(PROMPTS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = ResultCache(folder)
        model = load_model("embedded", "cpu", "auto")
        runner = ModelRunner(
            model, cache, UntilOver(folder), BATCH, SharedExecutor(cache, lambda: None, machine_of(model))
        )
        with assistants(folder, workers - 1, threads):
            began = time.monotonic()
            drawn = runner.draw("benchmark", texts, range(PROMPTS), runner.base)
            runner.judge(drawn.tokens, runner.base)
            seconds = time.monotonic() - began
    return seconds, content_hash({"tokens": drawn.tokens})


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assist", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if SPINNING[0] not in os.environ:  # OpenMP reads it when it is loaded
        os.environ.update([SPINNING])
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.jobs.workers", *sys.argv[1:]])
    if arguments.assist:
        help_along(arguments.assist)
        return 0
    about: dict[str, Any] = circumstances()
    cores = os.cpu_count() or 1
    kinds = [(1, cores), (2, cores), (2, 1), (4, 1)]
    seconds: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    hashes = set()
    for _ in range(ROUNDS):
        for kind in kinds:
            took, digest = run(*kind)
            seconds[kind].append(took)
            hashes.add(digest)
            print(kind, round(took, 1), digest[:12], flush=True)
    alone = min(seconds[kinds[0]])
    rows = [
        {"workers": w, "threads each": t, "s": min(s), "of one worker": min(s) / alone} for (w, t), s in seconds.items()
    ]
    page = [
        f"# Workers that share a job's batches, {PROMPTS} images",
        "",
        "Written by `python -m benchmarks.jobs.workers`.",
        "",
    ]
    page += [f"{key}: {value}  " for key, value in about.items()]
    page += ["", *table(rows), "", f"Distinct results: {len(hashes)}."]
    write("workers", {"about": about, "rows": rows, "hashes": sorted(hashes)}, page)
    return 0 if len(hashes) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
