"""What one round of the loop came to.

A value; publishing it is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codebook.value import Codebook


@dataclass(frozen=True)
class RoundResult:
    """One round, accepted or not.

    reason: "accepted", or why not: "gain", "significance", "gate:<name>", "no_pairs", "no_direction".
    codebook: the accepted draft (version "draft"), else None.
    figures, gates, report: JSON. images: PNG files by name. stop: why the loop ends here, else None.
    """

    round: int
    accepted: bool
    reason: str
    codebook: Codebook | None
    figures: dict[str, Any]
    gates: dict[str, dict[str, Any]]
    report: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)
    stop: str | None = None
