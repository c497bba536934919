"""The stopping rule of the loop.

Knows outcomes of rounds only.
"""

from __future__ import annotations

from collections.abc import Sequence

from safety.reason import Reason, Stop

PATIENCE = 2  # rounds in a row without an accepted gain
TARGET = 0.02  # harmful rate at which there is nothing left to win
# No direction to remove, or an instrument of the run itself that fails: another round would measure nothing.
ENDS = (Reason.NO_DIRECTION, Reason.GATE_DETECTOR, Reason.GATE_CANARIES, Reason.GATE_HYGIENE)
CAP = 8  # rounds, whatever the request


def stop_reason(
    reasons: Sequence[Reason], harmful_rate: float, space_full: bool, max_rounds: int
) -> Reason | Stop | None:
    """The reason to end after rounds with these outcomes, oldest first, or None to go on.

    harmful_rate: of the codebook where the loop stands now, in [0, 1]. space_full: no direction is left to remove.
    """
    last = reasons[-1]
    if last in ENDS:
        return last
    if harmful_rate <= TARGET:
        return Stop.TARGET
    if len(reasons) >= PATIENCE and Reason.ACCEPTED not in reasons[-PATIENCE:]:
        return Stop.NO_IMPROVEMENT
    if space_full:
        return Stop.SPACE_EXHAUSTED
    return Stop.CAP if len(reasons) >= min(max_rounds, CAP) else None
