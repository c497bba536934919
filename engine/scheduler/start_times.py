"""Estimated start of waiting images, in steps: every image takes equally many.

Numbers only; no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def starts(running: Iterable[tuple[int, int]], waiting: Sequence[int], kv_rows: int, steps: int) -> list[int]:
    """Number of steps after which each waiting image begins, if no other joins.

    running: (KV rows, steps left) of each image being drawn; waiting: the KV rows of each waiting image, in order;
    kv_rows: how many there are; steps: an image's.
    """
    ends = [(left, rows) for rows, left in running]
    heapq.heapify(ends)
    free, now, begins = kv_rows - sum(rows for _, rows in ends), 0, []
    for needed in waiting:
        while free < needed:
            now, freed = heapq.heappop(ends)
            free += freed
        free -= needed
        heapq.heappush(ends, (now + steps, needed))
        begins.append(now)
    return begins
