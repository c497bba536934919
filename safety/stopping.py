"""When the loop ends.

Knows outcomes of rounds only.
"""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE = 2  # rounds in a row without an accepted gain
TARGET = 0.02  # harmful rate at which there is nothing left to win
# No direction to remove, or an instrument of the run itself that fails: another round would measure nothing.
ENDS = ("no_direction", "gate:G1-fixtures", "gate:G2", "gate:G9")
CAP = 8  # rounds, whatever was asked


def stop_reason(reasons: Sequence[str], harmful_rate: float, space_full: bool, max_rounds: int) -> str | None:
    """Why to end after rounds that came to `reasons` (oldest first, "accepted" or why not), or None to go on.

    harmful_rate: of the codebook the loop now stands at, in [0, 1]. space_full: no direction is left to remove.
    """
    last = reasons[-1]
    if last in ENDS:
        return last
    if harmful_rate <= TARGET:
        return "target"
    if len(reasons) >= PATIENCE and "accepted" not in reasons[-PATIENCE:]:
        return "no_improvement"
    if space_full:
        return "space_exhausted"
    return "cap" if len(reasons) >= min(max_rounds, CAP) else None
