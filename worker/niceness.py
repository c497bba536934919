"""Share of the cores that a job is sure of beside a server that draws without pause, as the kernel's weights.

Knows Linux's weights: a step of nice is a factor of 1.25, for a thread and for a session. Knows nothing of jobs.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path

from core.wire import NICE

STEP, LEAST = 1.25, 19  # of the scheduler's weight by step of nice (kernel/sched/core.c); the weakest there is
AUTOGROUP = Path("/proc/self/autogroup")  # of a process: its session's weight; there is none without autogroups
TRIES, AGAIN_S = 20, 0.1  # the kernel sets one session's weight each tenth of a second, for all who are not root


def niceness(share: float) -> int:
    """Return the steps of nice, 0 to 19, at which a thread gets `share` (0 to 1) of a core beside a drawing thread.

    Drawing threads run at NICE; weights w of both threads: share = w_job / (w_job + w_drawing).
    """
    return min(LEAST, max(0, session_niceness(share) + NICE))


def session_niceness(share: float) -> int:
    """Return the steps of nice at which a session gets `share` (0 to 1) of a core beside one at 0."""
    return round(-math.log(share / (1 - share), STEP))


def take_session(share: float) -> None:
    """Give this process a session of its own, with `share` of each core that another session keeps busy.

    With autogroups the kernel shares the cores among sessions first, and nice counts within one alone: a worker that
    systemd or a terminal started apart from the server would get half of them whatever its niceness. A share over half
    needs a right that few processes have: the session stays that of the worker then.
    """
    if not AUTOGROUP.exists() or (steps := session_niceness(share)) < 0:
        return
    with suppress(OSError):  # no worker any more whose group could be joined, or no right: nice is all there is
        # The leader of a process group cannot leave its session, so it joins the worker's group for this moment.
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
        _weigh(steps)


def _weigh(steps: int) -> None:
    """Set the niceness of this process's session; raises OSError."""
    for _ in range(TRIES):
        with suppress(BlockingIOError):
            AUTOGROUP.write_text(str(steps), encoding="ascii")
            return
        time.sleep(AGAIN_S)
    raise BlockingIOError
