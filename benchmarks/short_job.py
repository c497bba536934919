"""`safecb serve` with improve jobs of seconds instead of minutes: real attempts, fencing and publishing, no drawing.

A round takes about a second and publishes the start's pixel table with rotated codes, so that every version draws
different images. `python -m benchmarks.short_job` is the supervisor.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli import serve
from cli.child import Child
from codebook.value import Codebook
from core.settings import Settings
from engine.model import ImageModel
from engine.registry import load_model
from safety.loop import ImproveRequest, Progress, RoundResult
from safety.reason import Reason
from worker.allowed_job import AllowedJob
from worker.attempt import Loop, run
from worker.main import work

ROUNDS, STEPS, STEP_S = 3, 10, 0.1
WORKER = "import sys; from benchmarks.short_job import worker; sys.exit(worker())"  # RQ refuses a job class of __main__


class ShortJob(AllowedJob):
    """The queue's improve job, run by `improve` of this module."""

    @property
    def func(self) -> Callable[..., Any] | None:
        """See AllowedJob; raises BadInput as it does."""
        return None if super().func is None else improve


def improve(job_id: str) -> None:
    """Run the job as `worker.jobs.improve` does, with short rounds."""
    settings = Settings.from_environ(os.environ)
    run(job_id, settings, lambda s: load_model(s.model, s.device, s.dtype), ShortRounds())


class ShortRounds(Loop):
    """ROUNDS accepted rounds; their state is kept in `work`, so that a resume yields the same."""

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> Iterator[RoundResult]:
        """See Loop."""
        work.mkdir(exist_ok=True)
        for number in range(1, ROUNDS + 1):
            mark = work / f"round-{number}"
            if not mark.exists():
                for step in range(STEPS):
                    watch.report("draw", step, STEPS, number)
                    time.sleep(STEP_S)
                mark.touch()
            draft = replace(start, version="draft", pixel=start.pixel.roll(number, 0), output=None)
            yield RoundResult(number, True, Reason.ACCEPTED, draft, {}, {}, {})

    def assess(
        self, model: ImageModel, start: Codebook, end: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> dict[str, Any] | None:
        """See Loop; there is nothing to evaluate."""
        return None


def worker() -> int:
    """Work as `worker.main` does, on short jobs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    return work(Settings.from_environ(os.environ), ShortJob)


def children(settings: Settings, files: ExitStack) -> list[Child]:
    """Return the children of `safecb serve`, with the worker of this module."""
    parts = serve.children(settings, files)
    next(part for part in parts if part.name == "worker").command = lambda: [sys.executable, "-c", WORKER]
    return parts


if __name__ == "__main__":
    sys.exit(serve.run(children))
