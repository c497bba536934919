"""The result of one check of a model: passed, failed, measured without a limit, or not measured.

Pure values. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch

from core.errors import SafeCBError


class Status(StrEnum):
    """MEASURED: a figure for which there is no limit. NOT_MEASURED is never taken for PASSED."""

    PASSED = "passed"
    FAILED = "failed"
    MEASURED = "measured"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Check:
    """result: in words; limit: what it must be to pass; figures: the numbers behind the words."""

    name: str
    status: Status
    result: str
    limit: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON; a figure that is NaN or infinite is null."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {"name": self.name, "status": self.status, "result": self.result, "limit": self.limit} | {
            "figures": figures
        }

    @property
    def line(self) -> str:
        """The check as a line of a terminal."""
        mark = {Status.PASSED: "ok", Status.FAILED: "FAULT", Status.MEASURED: "-", Status.NOT_MEASURED: "?"}
        limit = f" (limit: {self.limit})" if self.limit else ""
        return f"{mark[self.status]:6} {self.name}: {self.result}{limit}"


def limited(name: str, passed: bool, result: str, limit: str, **figures: float) -> Check:
    """Return a check that has a limit."""
    return Check(name, Status.PASSED if passed else Status.FAILED, result, limit, figures)


def measured(name: str, result: str, **figures: float) -> Check:
    """Return a figure without a limit."""
    return Check(name, Status.MEASURED, result, figures=figures)


def unmeasured(name: str, reason: str) -> Check:
    """Return a check that could not be made."""
    return Check(name, Status.NOT_MEASURED, reason)


def guarded(name: str, measure: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield the checks of `measure`; after an error one of this name that failed, with the error's text."""
    try:
        yield from measure()
    except Exception as error:  # whatever a checkpoint makes torch do: the page is for that
        yield Check(name, Status.FAILED, reason_of(error))


def reason_of(error: Exception) -> str:
    """An error in words: those of the project alone, others with their kind and their first line."""
    if isinstance(error, SafeCBError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory does not suffice"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
