"""Fencing tokens: the highest attempt number of each job, so that a superseded worker cannot publish.

Knows names of jobs and numbers. The caller holds the lock.
"""

from __future__ import annotations

from pathlib import Path

from core.atomic import read_file, replace_file
from core.errors import BadCodebook, Conflict
from core.json_records import from_json, to_json


class Fences:
    """The tokens in the file `path`: a JSON object from job to fence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def admit(self, job: str, fence: int) -> None:
        """Record `fence` as the highest of `job`. Raises Conflict if a higher one is recorded."""
        fences = self._read()
        highest = fences.get(job, fence)
        if fence < highest:
            raise Conflict(f"attempt {fence} of job {job} is stale: attempt {highest} has taken over")
        if fences.get(job) != fence:
            replace_file(self._path, to_json("fences", fences | {job: fence}))

    def _read(self) -> dict[str, int]:
        try:
            fences = from_json(read_file(self._path))
            return {job: int(fence) for job, fence in fences.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            detail = f"{self._path} is damaged: {error}; move it away while no job runs: jobs record their fences again"
            raise BadCodebook("store", "fences", detail) from None
