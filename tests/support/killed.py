"""A function in a process of its own that kills itself with SIGKILL, as the tests of resumes need."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from engine.family import GROUP

PATIENCE_S = 120
MEASURED = "preflight.safetensors"  # holds how fast images were drawn


def run_until_killed(target: Callable[..., Any], *args: object) -> None:
    """Run `target` with these arguments in a fresh process, which must die of SIGKILL.

    The processes are forked from one that has imported the module of the first target, the families, and what any
    optimiser of torch imports, and done nothing else. They see the environment of then, not what a test has set since.
    """
    context = multiprocessing.get_context("forkserver")
    families = [point.module for point in entry_points(group=GROUP)]
    context.set_forkserver_preload([target.__module__, "torch._dynamo", *families])
    process = context.Process(target=target, args=args)
    process.start()
    process.join(PATIENCE_S)
    died_of = process.exitcode
    process.kill()  # where it hangs
    process.join()
    assert died_of == -signal.SIGKILL, (args, died_of)


def differing(work: Path, undisturbed: Path) -> list[str]:
    """The results of a killed run, by name, that an undisturbed one has otherwise or has not."""
    names = {path.name for path in work.iterdir() if path.is_file()} - {MEASURED}
    same = {name for name in names if (undisturbed / name).exists()}
    return sorted(
        name for name in names if name not in same or (work / name).read_bytes() != (undisturbed / name).read_bytes()
    )
