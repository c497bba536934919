"""What a gate says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from core.json_records import to_json


@dataclass(frozen=True)
class GateResult:
    """name: "G1", ...; figures: what was measured, JSON; threshold: in words, what would have passed.

    Raises BadInput, naming the gate, for figures that are NaN or infinite: they pass no gate and fail none.
    """

    name: str
    passed: bool
    figures: dict[str, Any]
    threshold: str

    def __post_init__(self) -> None:
        to_json(f"gate {self.name}", self.figures)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self)
