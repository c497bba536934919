"""Niceness of a worker, from the share of the cores that its job is sure of beside a server that draws without pause.

Knows Linux's weights: a step of nice is a factor of 1.25. Knows nothing of jobs.
"""

from __future__ import annotations

import math

from core.wire import NICE

STEP, LEAST = 1.25, 19  # of the scheduler's weight by step of nice (kernel/sched/core.c); the weakest there is


def niceness(share: float) -> int:
    """Return the steps of nice, 0 to 19, at which a thread gets `share` (0 to 1) of a core beside a drawing thread.

    Drawing threads run at NICE; weights w of both threads: share = w_job / (w_job + w_drawing).
    """
    return min(LEAST, max(0, round(NICE - math.log(share / (1 - share), STEP))))
