"""The real server process with a model that is STEP_S seconds slower a token: `python -m tests.support.slow_server`."""

from __future__ import annotations

import os
import time

from app import server
from engine.runner.batch import RunningBatch

STEP = RunningBatch.step


def step(slots: RunningBatch) -> object:
    if any(slot.request.prompt != "warm-up" for slot in slots.drawing):
        time.sleep(float(os.environ["STEP_S"]))
    return STEP(slots)


if __name__ == "__main__":
    RunningBatch.step = step  # type: ignore[method-assign,assignment]
    server.end_process(server.main())
