"""The result of a gate: passed or not, the figures, and the threshold in words.

Knows the names of all gates. Knows nothing of what they measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from core.json_records import to_json


class Gate(StrEnum):
    """The gates by name, in the order in which a failed one gives the reason of a decision."""

    DETECTOR = "detector"
    CANARIES = "canaries"
    HYGIENE = "hygiene"
    VALIDITY = "validity"
    SECOND_JUDGE = "second_judge"
    LOOK_ALIKES = "look_alikes"
    QUALITY = "quality"
    RECOVERY = "recovery"
    DIVERSITY = "diversity"
    LANGUAGES = "languages"
    NULL_SPACE = "null_space"


@dataclass(frozen=True)
class GateResult:
    """figures: the measurements, JSON; threshold: the condition to pass, in words. passed: None where not measured.

    Raises BadInput, naming the gate, for figures that are NaN or infinite: they pass no gate and fail none.
    """

    name: Gate
    passed: bool | None
    figures: dict[str, Any]
    threshold: str

    def __post_init__(self) -> None:
        to_json(f"gate {self.name}", self.figures)

    @classmethod
    def not_measured(cls, name: Gate, lacking: str, threshold: str) -> GateResult:
        """The result of a gate that has nothing to measure on; it neither passes nor fails."""
        return cls(name, None, {"not measured": lacking}, threshold)

    @property
    def failed(self) -> bool:
        """Whether it was measured and did not pass."""
        return self.passed is False

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {**vars(self), "name": str(self.name)}
