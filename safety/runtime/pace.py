"""The pace of a run against its plan: the phase it is in, what its steps really take, and the seconds left.

Learns from progress reports alone. Knows nothing of where it is shown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from safety.policy.phases import ALL, DRAWN, Rates
from safety.policy.plan import Plan

OWN = 2.0  # priced seconds, after which a step's own speed counts as much as that of all steps
REPEATED = ("decode", "contexts")  # steps whose calls may follow each other with the same numbers
TRAINING = ("router", "tune")  # what steps of training begin with
EARLIER = 5.0  # priced seconds that an earlier run counts


class Pace:
    """Follows a run by its progress reports.

    A step is scaled by its own speed once it has been seen, and by that of all steps so far until then.
    """

    def __init__(
        self, plan: Plan, earlier: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """earlier: the rates of an earlier run of the same model, at which the estimate begins."""
        self.plan, self._earlier, self._clock = plan, dict(earlier or {}), clock
        self._phase = 0  # index of the phase that the run is in
        self._done = Counter[str]()  # units of it, by step
        self._last: tuple[str, int, int] | None = None  # step, done and total of the last report
        self._at = clock()
        self._spent: dict[str, float] = {}  # seconds by step
        self._priced: dict[str, float] = {}  # and their price
        self._phases: dict[int, float] = {}  # seconds by phase

    def report(self, step: str, done: int, total: int, round: int) -> None:
        """Take a progress report; see safety.runtime.progress.Progress."""
        if self._last is not None:
            self._count(self._last[0], self._units(step, done, total))
        self._at, self._last = self._clock(), (step, done, total)
        phases = self.plan.phases
        for index in range(self._phase, len(phases)):
            if phases[index].round == round and phases[index].has(step):
                if index != self._phase:
                    self._phase, self._done = index, Counter()
                return

    def on(self, plan: Plan) -> Pace:
        """The pace of the same run on a plan of the same phases and other sizes."""
        other = copy(self)
        other.plan = plan
        return other

    def end(self) -> None:
        """Take the end of the run, which may come before the last phase."""
        if self._last is not None:
            self._count(self._last[0], self._units("", 0, 0))
            self._last = None

    def _units(self, step: str, done: int, total: int) -> int:
        """Units of the last reported step until this report: of the same call of it, or of another one.

        Calls begin at 0. What a call does after its last report ends with it, but for training, which may end early.
        """
        last, before, whole = self._last or ("", 0, 0)
        same = (step, total) == (last, whole)
        if same and (done > 0 or before == 0) and not (done == before and step in REPEATED):
            return max(0, done - before)
        return 0 if last.startswith(TRAINING) else whole - before

    def _count(self, step: str, units: int) -> None:
        """Count units of a step in the present phase, made since the last report."""
        seconds = self._clock() - self._at
        self._phases[self._phase] = self._phases.get(self._phase, 0.0) + seconds
        self._done[step] += units
        price = self.plan.phases[self._phase].price_of(step)
        if price:
            self._spent[step] = self._spent.get(step, 0.0) + seconds
            self._priced[step] = self._priced.get(step, 0.0) + units * price

    @property
    def rates(self) -> Rates:
        """The rates so far, at which a later run may begin; empty where nothing was measured."""
        base = {step: price * self._usual(step) for step, price in self._priced.items()}
        weight = EARLIER if self._earlier else 0.0
        if not (priced := sum(base.values()) + weight):
            return {}
        scale = (sum(self._spent.values()) + weight) / priced
        steps = {step for step in (*self._earlier, *self._priced) if step != ALL}
        own = {
            step: (self._spent.get(step, 0.0) + OWN * scale * self._usual(step)) / (self._priced.get(step, 0.0) + OWN)
            for step in sorted(steps)
        }
        return {ALL: scale * self._usual(ALL)} | own

    def _usual(self, step: str) -> float:
        """The rate of a step before anything is measured."""
        return self._earlier.get(step, self._earlier.get(ALL, 1.0))

    @property
    def images_done(self) -> int:
        """Images of the plan behind the run: all of the phases before, and those of this one that it has drawn."""
        works = self.plan.phases[self._phase].work
        drawn = sum(min(self._done[work.step], work.count) for work in works if work.step in DRAWN)
        return sum(phase.images for phase in self.plan.phases[: self._phase]) + drawn

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end of the last phase; None where nothing was measured."""
        if not (rates := self.rates):
            return None
        left = sum(phase.seconds(rates) or 0.0 for phase in self.plan.phases[self._phase + 1 :])
        for work in self.plan.phases[self._phase].work:
            left += max(0, work.count - self._done[work.step]) * work.price * rates.get(work.step, rates[ALL])
        return left

    def to_dict(self) -> dict[str, Any]:
        """The plan, with what each phase took so far, as JSON."""
        report = self.plan.to_dict(self.rates)
        for index, row in enumerate(report["phases"]):
            row["spent"] = round(self._phases[index], 1) if index in self._phases else None
        return {**report, "images_done": self.images_done}
