"""Worker of the fleet: jobs of benchmarks.short_job, whose code the job process loads late, as that of real jobs.

RQ's job process loads the class of its jobs before it takes its job over from the worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from core.settings import Settings
from worker.allowed_job import AllowedJob
from worker.main import work

WORKER = (
    "import sys; from benchmarks.scale.fleet.job import worker; sys.exit(worker())"  # RQ refuses a class of __main__
)


class LateJob(AllowedJob):
    """The queue's improve job, run by `improve` of this module."""

    @property
    def func(self) -> Callable[..., Any] | None:
        """See AllowedJob; raises BadInput as it does."""
        return None if super().func is None else improve


def improve(job_id: str) -> None:
    """Run a short job."""
    from benchmarks import short_job

    short_job.improve(job_id)


def worker() -> int:
    """Work as `worker.main` does, on short jobs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    return work(Settings.from_environ(os.environ), LateJob)
