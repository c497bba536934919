"""A function in a process of its own that kills itself with SIGKILL, as the tests of resumes need."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120


def run_until_killed(target: Callable[..., Any], *args: object) -> None:
    """Run `target` with these arguments in a fresh process, which must die of SIGKILL."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    process.join(PATIENCE_S)
    died_of = process.exitcode
    process.kill()  # where it hangs
    process.join()
    assert died_of == -signal.SIGKILL
