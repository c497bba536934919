"""Fitting of the router and of the halfway probe: linear probes that choose the expert of the head edit.

One probe a concept, by ridge logistic regression on prompt states, or on the mean feature of a half-drawn image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from codebook.router import Router
from safety.collect.router_data import PromptStates

RIDGE = 1e-4
PARTS = 3  # of the prompts, each of which is held out once
MOST_BENIGN = 0.03  # share of a part's benign prompts that fire; what one router fires on the mean seldom does
MOST_MISSED = 0.05  # share of held-out harmful prompts that the margin may come to
ITERATIONS = 60  # a router
STEPS = PARTS * ITERATIONS
SILENT = -2.0  # where the biases start


def fit_router(harmful: Sequence[PromptStates], benign: PromptStates, step: Callable[[int], None]) -> Router:
    """One probe and one expert for each set of harmful prompts, against the same benign ones and each other.

    The mean of PARTS routers, against the variance of a single fit. Each is fitted on all parts of the prompts but one,
    which places its thresholds. A set needs PARTS prompts. `step` is called with each of STEPS iterations.
    """
    centre, spread = benign.states[benign.seen].mean(0), benign.states[benign.seen].std(0).clamp(min=1e-6)
    *scaled, quiet = [replace(one, states=(one.states - centre) / spread) for one in (*harmful, benign)]
    routers = [_fit_but_one(scaled, quiet, part, step) for part in range(PARTS)]
    weight = torch.stack([router.weight for router in routers]).mean(0) / spread
    bias = torch.stack([router.bias for router in routers]).mean(0)
    return Router(weight, bias - weight @ centre, routers[0].expert)


def _fit_but_one(
    harmful: Sequence[PromptStates], benign: PromptStates, part: int, step: Callable[[int], None]
) -> Router:
    """The router of all parts but one."""

    def split(states: PromptStates) -> tuple[PromptStates, PromptStates]:
        held = torch.arange(len(states.seen)) % PARTS == part
        return states.part(~held), states.part(held)

    (fitted, held), (quiet, held_quiet) = zip(*map(split, harmful), strict=True), split(benign)
    weight, bias = _logistic(fitted, quiet, lambda done: step(part * ITERATIONS + done))
    router = Router(weight, bias, torch.arange(len(harmful)))
    return replace(router, bias=bias - _thresholds(router, held, held_quiet))


def _logistic(
    harmful: Sequence[PromptStates], benign: PromptStates, step: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Weights [p, H] and biases [p] of ridge logistic regressions on Router.scores, with equal mass on both sides.

    Each probe separates its harm from benign prompts, and all together one harm from the others (cross-entropy): the
    highest score chooses the expert.
    """
    probes, width = len(harmful), benign.states.shape[2]
    weight = torch.zeros(probes, width, requires_grad=True)
    bias = torch.full((probes,), SILENT, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    tried = count()

    def loss() -> float:
        step(min(next(tried), ITERATIONS))  # a search along a line may try more than once
        optimiser.zero_grad()
        router = Router(weight, bias, torch.arange(probes))
        total = softplus(router.scores(benign.states, benign.seen)).mean(0).sum() + RIDGE * weight.square().sum()
        for i, one in enumerate(harmful):
            scores = router.scores(one.states, one.seen)
            right = torch.full((len(scores),), i)
            total = total + (softplus(-scores[:, i]).mean() + cross_entropy(scores, right))
        torch.autograd.backward(total)
        return total.item()

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _thresholds(router: Router, harmful: Sequence[PromptStates], benign: PromptStates) -> Tensor:
    """The threshold of each probe, [p]: such that together they fire on MOST_BENIGN of the benign prompts.

    The whole allowance is used, since harm in unseen words scores lower than the held-out prompts. Each threshold
    starts halfway in the gap between the benign and the harmful held-out scores, or above all benign ones where there
    is no gap; then all are lowered by the same amount. So a probe with a wide gap keeps its distance.
    """
    quiet = router.scores(benign.states, benign.seen)
    own = [router.scores(one.states, one.seen)[:, i] for i, one in enumerate(harmful)]
    loud = torch.stack([scores.quantile(MOST_MISSED) for scores in own])
    loudest = quiet.amax(0)
    apart = torch.maximum(loudest, (loudest + loud) / 2)
    allowed = (quiet - apart).amax(1).quantile(1 - MOST_BENIGN, interpolation="higher")
    # A hair above the quantile: one benign prompt lies exactly on it.
    return apart + allowed + 1e-5
