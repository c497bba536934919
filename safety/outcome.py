"""The result of one round of the loop.

A value; publishing it is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codebook.value import Codebook
from safety.reason import Reason, Stop


@dataclass(frozen=True)
class RoundResult:
    """One round, accepted or not.

    codebook: the accepted draft (version "draft"), else None.
    figures, gates, report: JSON. images: PNG files by name. stop: the reason why the loop ends here, else None.
    self_judged: the run's categories that the second judge does not know: the model alone judges them.
    """

    round: int
    accepted: bool
    reason: Reason
    codebook: Codebook | None
    figures: dict[str, Any]
    gates: dict[str, dict[str, Any]]
    report: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)
    stop: Reason | Stop | None = None
    self_judged: tuple[str, ...] = ()
