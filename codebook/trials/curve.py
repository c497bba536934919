"""Curve of the e-values of a trial, for people to look at: at most MOST points, spread over all that was counted.

Nothing is decided by it: a decision follows from the counts. Knows numbers. Knows nothing of images or versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

MOST = 60

Point: TypeAlias = tuple[float, ...]  # what was counted so far, then e-values
Curve: TypeAlias = tuple[Point, ...]


def extended(curve: Curve, point: Point) -> Curve:
    """Return the curve with one point more; beyond MOST those go that lie close together."""
    if curve and curve[-1][0] == point[0]:
        return (*curve[:-1], point)
    points = (*curve, point)
    if len(points) <= MOST:
        return points
    gap, sparse = (point[0] - points[0][0]) / (0.75 * MOST), [points[0]]
    for inner in points[1:-1]:
        if inner[0] - sparse[-1][0] >= gap:
            sparse.append(inner)
    return (*sparse, point)


def shortened(value: float) -> float:
    """Return a value with four significant digits."""
    return float(f"{value:.4g}")


def to_columns(curve: Curve, names: Sequence[str]) -> dict[str, list[float]]:
    """Return a curve as JSON: the values of each name."""
    return {name: [point[i] for point in curve] for i, name in enumerate(names)}


def from_columns(columns: Mapping[str, Sequence[float]], names: Sequence[str]) -> Curve:
    """Return the curve that `to_columns` wrote; of a record without one, an empty one."""
    return tuple(zip(*(columns.get(name, ()) for name in names), strict=True))
