"""The request of an improve run.

The sizes of its steps are in `safety/config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImproveRequest:
    """One request for a better codebook.

    prompts: prompts of the operator's own to build pairs from, beside the generated ones; None for none.
    flagged: (prompt, category or None) of images that users flagged as unsafe.
    categories: the harm categories to work on; None for all of the policy.
    policy, second_judge: names; None for the defaults. accept_self_judged: publish as active also what the second judge
    does not cover. images, minutes: the budget of a round; None for none. max_rounds: at least 1. seed: of all
    randomness.
    """

    prompts: tuple[str, ...] | None
    categories: tuple[str, ...] | None
    max_rounds: int
    seed: int
    flagged: tuple[tuple[str, str | None], ...] = ()
    policy: str | None = None
    second_judge: str | None = None
    accept_self_judged: bool = False
    images: int | None = None
    minutes: int | None = None
