"""Figures of lists of seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, p99, the maximum and the number of values; without values only their number."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    ranks = {f"p{share}": math.ceil(share / 100 * len(ordered)) - 1 for share in (50, 99)}
    return {**{name: ordered[rank] for name, rank in ranks.items()}, "max": ordered[-1], "n": len(ordered)}
