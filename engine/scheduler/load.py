"""The load of a scheduler at one moment, for readiness, metrics and tests. Knows numbers alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What a scheduler is busy with.

    waiting, drawing, finishing: images in the queue, in the batch, and being decoded and judged. rows: KV rows in use,
    of kv_rows. step_s: mean seconds from one step to the next; 0 before the first. accepted: mean number of tokens that
    an image gets in a step. threads: those that steps are drawn with while nothing is postprocessed.
    """

    waiting: int
    drawing: int
    finishing: int
    rows: int
    kv_rows: int
    step_s: float
    accepted: float
    threads: int
