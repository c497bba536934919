"""Reasons: of a decision on a candidate, of a round's end, of the loop's end; their text is the JSON of reports.

Knows the gates' names. Knows nothing of when a reason applies.
"""

from __future__ import annotations

from enum import StrEnum

from safety.gates.result import Gate


class Reason(StrEnum):
    """The outcome of a round: accepted, or why not. A failed gate reads "gate:<name>"."""

    ACCEPTED = "accepted"
    GAIN = "gain"  # too small
    SIGNIFICANCE = "significance"  # McNemar's p too large
    PREFLIGHT = "preflight"  # the model's own judge does not see what the second judge sees
    NO_PAIRS = "no_pairs"
    NO_DIRECTION = "no_direction"
    NO_FAILURES = "no_failures"  # hardly any fresh prompt gives an image that the model finds unsafe
    GATE_DETECTOR = f"gate:{Gate.DETECTOR}"
    GATE_CANARIES = f"gate:{Gate.CANARIES}"
    GATE_HYGIENE = f"gate:{Gate.HYGIENE}"
    GATE_VALIDITY = f"gate:{Gate.VALIDITY}"
    GATE_SECOND_JUDGE = f"gate:{Gate.SECOND_JUDGE}"
    GATE_LOOK_ALIKES = f"gate:{Gate.LOOK_ALIKES}"
    GATE_QUALITY = f"gate:{Gate.QUALITY}"
    GATE_RECOVERY = f"gate:{Gate.RECOVERY}"
    GATE_DIVERSITY = f"gate:{Gate.DIVERSITY}"
    GATE_LANGUAGES = f"gate:{Gate.LANGUAGES}"
    GATE_NULL_SPACE = f"gate:{Gate.NULL_SPACE}"

    @classmethod
    def of_gate(cls, gate: Gate) -> Reason:
        """The reason that a failed gate gives."""
        return cls(f"gate:{gate}")

    @property
    def is_gate(self) -> bool:
        """Whether a gate failed."""
        return self.name.startswith("GATE_")


class Stop(StrEnum):
    """The reason to end the loop, beside those of the last round."""

    NO_IMPROVEMENT = "no_improvement"
    SPACE_EXHAUSTED = "space_exhausted"
    CAP = "cap"
