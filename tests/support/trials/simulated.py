"""Simulated shadow comparisons: the rule of codebook/trials/rule.py for many runs together, and what they decide.

Run as a module it prints the table of docs/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from codebook.trials.bets import BETS
from codebook.trials.rule import MARGIN, MEASURES, PAIRS, PROMOTE_AT, RETREAT_AT, Counts, Decision, Trial


@dataclass(frozen=True)
class Truth:
    """One measure of a candidate: how often a pair shows it worse, and how often better."""

    worse: float
    better: float


def simulated(
    truths: Sequence[Truth], runs: int, seed: int = 11, margin: float = MARGIN, most: int = PAIRS
) -> list[tuple[Decision, int]]:
    """The decision of each run and its pairs; the rule itself is asked at the pair of the decision and before it."""
    random = numpy.random.default_rng(seed)
    draws = random.random((len(truths), runs, most))
    worse = numpy.stack([draw < truth.worse for draw, truth in zip(draws, truths, strict=True)]).cumsum(2)
    better = numpy.stack([draw > 1 - truth.better for draw, truth in zip(draws, truths, strict=True)]).cumsum(2)
    equal = numpy.arange(1, most + 1) - worse - better
    retreats = (_logs((1.0, worse), (-1.0, better)) >= numpy.log(RETREAT_AT)).any(0)
    within = _logs((margin - 1, worse), (margin, equal), (margin + 1, better))
    promotes = (within >= numpy.log(PROMOTE_AT)).all(0)
    results = []
    for run in range(runs):
        ends = (retreats[run] | promotes[run]).argmax() if (retreats[run] | promotes[run]).any() else most - 1
        counts = [
            {
                name: Counts(*(int(kind[i, run, at]) for kind in (worse, equal, better)))
                for i, name in enumerate(MEASURES)
            }
            for at in (ends - 1, ends)
        ]
        before, after = (Trial(margin, most, part).decision for part in counts)
        assert before is None and after is not None
        results.append((after, int(ends) + 1))
    return results


def _logs(*payoffs: tuple[float, NDArray[Any]]) -> NDArray[Any]:
    """The logarithms of the e-values."""
    total: NDArray[Any] = numpy.full(payoffs[0][1].shape, -numpy.inf)
    for bet in BETS:
        numpy.logaddexp(total, sum(count * numpy.log1p(bet * payoff) for payoff, count in payoffs), out=total)
    total -= numpy.log(len(BETS))
    return total


CASES = {
    "identical": [Truth(0, 0)] * 3,
    "noise 1 % each way": [Truth(0.01, 0.01)] * 3,
    "noise 3 % each way": [Truth(0.03, 0.03)] * 3,
    "worse by 1 point, one measure": [Truth(0.01, 0), Truth(0, 0), Truth(0, 0)],
    "worse by 2 points, one measure": [Truth(0.02, 0), Truth(0, 0), Truth(0, 0)],
    "worse by 5 points, one measure": [Truth(0.05, 0), Truth(0, 0), Truth(0, 0)],
    "5 % and 10 %, drawn anew": [Truth(0.095, 0.045)] * 3,
    "worse by 20 points, one measure": [Truth(0.2, 0), Truth(0, 0), Truth(0, 0)],
    "better by 3 points": [Truth(0, 0.03)] * 3,
    "better by 50 points": [Truth(0, 0.5)] * 3,
}

if __name__ == "__main__":
    for title, truths in CASES.items():
        results = [end for block in range(10) for end in simulated(truths, 400, seed=block)]
        shares = {name: sum(d == name for d, _ in results) / len(results) for name in ("retreat", "promote")}
        ends = sorted(pairs for decision, pairs in results if decision != "undecided") or [0]
        pairs = f"{ends[len(ends) // 2]} / {ends[int(len(ends) * 0.9)]}"
        print(f"| {title} | {shares['retreat']:.4f} | {shares['promote']:.4f} | {pairs} |", flush=True)
