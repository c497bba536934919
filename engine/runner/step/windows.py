"""Windows of lookahead: how many tokens of an image a step should sample, by what steps of more rows cost here.

Where a step waits for its weights, rows that guess cost next to nothing; where it computes, they cost what they take,
and guesses that fail are lost. Knows costs; knows no tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ROWS = 16  # rows that a step may compute for guesses: with more it takes longer than the guesses save
MEASURED = (2, 4, 8, 16)  # rows of the steps that are measured
TURNS = 3
SLOW_S = 0.1  # of a step of two rows: such a model is not measured, since that would take seconds of the start
# By window: tokens that an image gets in a step on average, with the embedded model (docs/log.md, 30 November 2026).
TOKENS = {1: 1.0, 2: 1.41, 3: 1.7, 4: 1.92, 6: 2.3, 8: 2.58, 16: 3.2}


class Windows:
    """The largest window for a number of KV rows: `most`, and no more than ROWS rows, until costs are measured."""

    def __init__(self, most: int) -> None:
        """most: the largest window of all."""
        self.most = most
        self._costs: dict[int, dict[int, float]] = {}  # by number of threads: seconds of a step, by MEASURED

    def measure(self, threads: int, step: Callable[[int], object]) -> None:
        """Measure with so many threads; step: computes one of so many rows."""
        _seconds(step, MEASURED[0])
        if _seconds(step, MEASURED[0]) < SLOW_S:
            turns = [[_seconds(step, rows) for rows in MEASURED] for _ in range(TURNS)]
            self._costs[threads] = {rows: min(turn[n] for turn in turns) for n, rows in enumerate(MEASURED)}

    def of(self, kv_rows: int, threads: int) -> int:
        """The window for so many rows: with the least time a token, by costs with so many threads."""
        limit, costs = max(1, min(self.most, ROWS // kv_rows)), self._costs.get(threads)
        if costs is None or limit == 1:
            return limit
        windows = [window for window in TOKENS if window <= limit]
        return min(windows, key=lambda window: _cost(costs, kv_rows * window) / TOKENS[window])


def tokens_of(window: int) -> float:
    """Tokens that an image gets in a step with this window, on average."""
    return TOKENS[max(each for each in TOKENS if each <= window)]


def _seconds(step: Callable[[int], object], rows: int) -> float:
    began = time.perf_counter()
    step(rows)
    return time.perf_counter() - began


def _cost(costs: dict[int, float], rows: int) -> float:
    """Seconds of a step of so many rows: in between, on a line."""
    below = max((each for each in costs if each <= rows), default=MEASURED[0])
    above = min((each for each in costs if each >= rows), default=MEASURED[-1])
    share = 0.0 if below >= above else (rows - below) / (above - below)
    return costs[below] + share * (costs[above] - costs[below])
