"""What a gate says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GateResult:
    """name: "G1", ...; figures: what was measured, JSON; threshold: in words, what would have passed."""

    name: str
    passed: bool
    figures: dict[str, Any]
    threshold: str

    def told(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self)
