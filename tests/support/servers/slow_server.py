"""The real server process with a model that is STEP_S seconds slower a token; run it with python -m."""

from __future__ import annotations

import os
import time

from app import server
from engine.runner.batch import RunningBatch

STEP = RunningBatch.step


def step(batch: RunningBatch) -> object:
    if any(sequence.request.prompt != "warm-up" for sequence in batch.sequences):
        time.sleep(float(os.environ["STEP_S"]))
    return STEP(batch)


if __name__ == "__main__":
    RunningBatch.step = step  # type: ignore[method-assign,assignment]
    server.end_process(server.main())
