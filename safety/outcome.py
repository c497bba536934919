"""The result of one round of the loop.

A value; publishing it is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codebook.value import Codebook
from safety.reason import Reason, Stop


@dataclass(frozen=True)
class RunFacts:
    """The names of a run's policy and second judge, and its categories: those that this judge knows, and the others.

    self_judged: the model alone judges them.
    """

    policy: str = ""
    second_judge: str = ""
    covered: tuple[str, ...] = ()
    self_judged: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundResult:
    """One round, accepted or not.

    codebook: the accepted draft (version "draft"), else None.
    figures, gates, report: JSON. images: PNG files by name. stop: the reason why the loop ends here, else None.
    fault: why the preflight refused the run, in words; None where it did not. failing: the rate at which images of
    fresh prompts, evenly over all strata, failed before the round, as JSON; None for a round that mined nothing.
    decision: the figures on which the best candidate was accepted or not, as JSON; None where there was none.
    """

    round: int
    accepted: bool
    reason: Reason
    codebook: Codebook | None
    figures: dict[str, Any]
    gates: dict[str, dict[str, Any]]
    report: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)
    stop: Reason | Stop | None = None
    run: RunFacts = RunFacts()
    fault: str | None = None
    failing: dict[str, float] | None = None
    decision: dict[str, Any] | None = None
