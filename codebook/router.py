"""The router of a head edit: linear probes that choose the experts for an image, by its prompt or halfway through.

Knows hidden states. Knows nothing of what an expert changes. Routers are fitted in `safety/edit/router_fit.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import BadNumber


@dataclass(frozen=True, eq=False)
class Router:
    """Linear probes, one per harm, that choose the experts of a HeadEdit for an image, if any.

    A probe reads every hidden state of a sequence, such as those of the prompt's tokens, and sums up its evidence:

        score = log sum_t exp(weight h_t + bias), over the states t

    weight: [p, H] float32; bias: [p] float32; expert: [p] int64, the expert of each probe. The expert of the highest
    score above 0 applies, or of the highest of each group; without one the image is drawn as by the base codebook, bit
    for bit.
    """

    weight: Tensor
    bias: Tensor
    expert: Tensor

    def scores(self, states: Tensor, mask: Tensor) -> Tensor:
        """Score [B, p] float32 of states [B, T, H], bool [B, T] False at padding."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        each = states.float() @ weight.T + bias
        return each.masked_fill(~mask[:, :, None], -torch.inf).logsumexp(1)

    def experts(self, states: Tensor, mask: Tensor, groups: Tensor | None) -> list[tuple[int, ...]]:
        """The experts of each row, the highest score first; () for none. Arguments as in `scores`.

        groups: [e] int64, of each expert: the best one of each group applies. None: the best one alone.
        Raises BadNumber for a score of NaN, which is neither above 0 nor below.
        """
        scores = self.scores(states, mask).cpu()
        if bool(scores.isnan().any()):
            raise BadNumber("router score", "NaN")
        return [self._loudest(row, groups) for row in scores]

    def _loudest(self, scores: Tensor, groups: Tensor | None) -> tuple[int, ...]:
        """The experts of one row of scores [p]."""
        best: dict[int, int] = {}
        firing = (scores > 0).nonzero().flatten()  # few, and most often none
        for probe in firing[scores[firing].argsort(descending=True, stable=True)].tolist():
            expert = int(self.expert[probe])
            best.setdefault(0 if groups is None else int(groups[expert]), expert)
        return tuple(best.values())


@dataclass(frozen=True, eq=False)
class HalfwayProbe:
    """A probe run halfway through generation. It catches harm that the prompt router missed.

    after: the number of tokens sampled by then, from 1; where a step samples several, as many more as end its step.
    probes: a router of features, [p, M], that reads one state an image: the mean feature of those tokens, sampled
    without an edit. If it fires, the image restarts under its experts, and becomes the image that it would have been if
    the prompt router had fired.
    """

    after: int
    probes: Router

    def experts(self, mean: Tensor, groups: Tensor | None) -> list[tuple[int, ...]]:
        """The experts of each image by its mean feature [B, M], as in Router.experts."""
        seen = torch.ones(mean.shape[0], 1, dtype=torch.bool, device=mean.device)
        return self.probes.experts(mean[:, None], seen, groups)
