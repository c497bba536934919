"""When images will be drawn, in steps: every image takes as many steps as it has tokens, so that is known beforehand.

Numbers only; no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def starts(drawing: Iterable[tuple[int, int]], waiting: Sequence[int], rows: int, steps: int) -> list[int]:
    """In how many steps each waiting image begins, if nobody else joins.

    drawing: (rows taken, steps left) of each image being drawn; waiting: the rows that each waiting image takes, in
    order; rows: how many there are; steps: an image's.
    """
    ends = [(left, taken) for taken, left in drawing]
    heapq.heapify(ends)
    free, now, begins = rows - sum(taken for _, taken in ends), 0, []
    for needed in waiting:
        while free < needed:
            now, freed = heapq.heappop(ends)
            free += freed
        free -= needed
        heapq.heappush(ends, (now + steps, needed))
        begins.append(now)
    return begins
