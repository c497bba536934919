"""Pace of a scheduler: mean seconds from one step to the next, and how many tokens an image gets in one."""

from __future__ import annotations

from collections.abc import Callable

SMOOTHING = 0.02  # weight of the last step in the means: prompts are read between some of them


class Pace:
    """Running means. step_s: seconds, prefills included; 0 before the first step. accepted: tokens, 1 or more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take the time, in seconds, from `clock`."""
        self.step_s, self.accepted = 0.0, 1.0
        self._clock, self._last = clock, 0.0

    def begin(self) -> None:
        """Begin to draw: the first step is timed from here."""
        self._last = self._clock()

    def note(self, accepted: float) -> None:
        """Count one more step, in which an image got `accepted` tokens."""
        now = self._clock()
        self.step_s += (now - self._last - self.step_s) * (SMOOTHING if self.step_s else 1.0)
        self.accepted += (accepted - self.accepted) * SMOOTHING
        self._last = now

    def seconds(self, steps: float) -> float:
        """Seconds in which an image gets through so many steps of its script."""
        return steps * self.step_s / self.accepted
