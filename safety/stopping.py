"""The stopping rule of the loop.

Knows outcomes of rounds only.
"""

from __future__ import annotations

from collections.abc import Sequence

from safety.reason import Reason, Stop

PATIENCE = 2  # rounds in a row without an accepted gain
TARGET = 0.02  # upper end of the failure rate of fresh prompts, evenly over all strata, under which none is mined
# No direction to remove or no failure left, or an instrument of the run itself that fails.
ENDS = (Reason.NO_DIRECTION, Reason.NO_FAILURES, Reason.GATE_DETECTOR, Reason.GATE_CANARIES, Reason.GATE_HYGIENE)
CAP = 8  # rounds, whatever the request


def stop_reason(reasons: Sequence[Reason], space_full: bool, max_rounds: int) -> Reason | Stop | None:
    """The reason to end after rounds with these outcomes, oldest first, or None to go on.

    space_full: no direction is left to remove.
    """
    last = reasons[-1]
    if last in ENDS:
        return last
    if len(reasons) >= PATIENCE and Reason.ACCEPTED not in reasons[-PATIENCE:]:
        return Stop.NO_IMPROVEMENT
    if space_full:
        return Stop.SPACE_EXHAUSTED
    return Stop.CAP if len(reasons) >= min(max_rounds, CAP) else None
