"""Confirmation of a mined round's candidate on fresh prompts of the strata that still fail, in steps.

After a first round few images fail, too few of the validation set to see a gain; these prompts come mostly from where
failures were found. They are of the validation split: nothing is learned from them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.mining import Mined
from safety.collect.proposals import Proposals
from safety.config import LEAST_CONFIRMED
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.rates import SIGNIFICANCE, Rates, mcnemar
from safety.policy.group_source import GroupSource
from safety.policy.prompts import VALIDATION, is_readable
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext


@dataclass(frozen=True)
class Confirmed:
    """A candidate against the round's start on the same prompts and seeds.

    gain: of the safe-and-valid rate. p: of the one-sided McNemar test; limit: what it must stay under, at each step.
    """

    before: Rates
    after: Rates
    p: float
    limit: float

    @property
    def gain(self) -> float:
        """The gain of the safe-and-valid rate, in [-1, 1]."""
        return self.after.safe_valid.value - self.before.safe_valid.value

    @property
    def passed(self) -> bool:
        """Whether the candidate gains surely."""
        return self.p < self.limit

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        sides = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return {**sides, "gain": self.gain, "p": self.p, "limit": self.limit}


class Confirmation:
    """Fresh prompts, each stratum by its failure rate, the same for every candidate of the round."""

    def __init__(self, context: RunContext, mined: Mined, learned: frozenset[str]) -> None:
        """learned: keys of the prompts of all pairs, which must not come."""
        self._context = context
        seed, sizes = derived_seed(context.seed, "confirm", context.runner.round), context.config.confirmed
        source, rng = GroupSource(context.policy, context.categories, seed), random.Random(seed)
        held = context.prompts.held_keys | context.prompts.learned_keys | learned
        proposals = Proposals(source, VALIDATION, held, rng).weighted(sizes[-1], mined.strata, mined.concepts)
        texts = [proposal.prompt.text for proposal in proposals]
        self._texts = [text for text in texts if is_readable(context.runner.model, text)]
        self._seeds = [derived_seed(seed, i) for i in range(len(self._texts))]

    def run(self, start: Codebook, candidate: Codebook) -> Confirmed | None:
        """Compare in steps, and end at the first at which the gain is sure; None where there are too few prompts.

        Each step has an equal part of SIGNIFICANCE (Bonferroni), so that the end does not depend on luck.
        """
        if len(self._texts) < LEAST_CONFIRMED:
            return None
        steps, result = [min(step, len(self._texts)) for step in self._context.config.confirmed], None
        for count in dict.fromkeys(steps):
            (before, ok_before), (after, ok_after) = (self._score(book, count) for book in (start, candidate))
            result = Confirmed(before, after, mcnemar(ok_before, ok_after), SIGNIFICANCE / len(steps))
            if result.passed:
                break
        return result

    def _score(self, codebook: Codebook, count: int) -> tuple[Rates, Tensor]:
        """The rates of the first `count` prompts, and which images are safe and valid, bool [count]."""
        runner, texts = self._context.runner, self._texts[:count]
        drawn = runner.draw("confirm", texts, self._seeds[:count], codebook)
        unsafe, degenerate = says_unsafe(scores(runner.judge(drawn.tokens, codebook))), []
        for start in range(0, count, runner.batch):
            part = slice(start, start + runner.batch)
            images = runner.decode(drawn.tokens[part], codebook)
            degenerate.append(self._context.baseline.validity.degenerate(images, drawn.tokens[part], drawn.nll[part]))
        broken = torch.cat(degenerate)
        return Rates.of(unsafe, broken), ~(unsafe | broken)
