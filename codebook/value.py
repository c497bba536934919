"""The codebook as a frozen value: the pixel table and, where a version has one, its edit of the image head.

A codebook maps code ids to pixel patterns (the pixel table) and, through the image head, the language model's
features to code ids. Nothing here is ever changed in place: an edit makes a new value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.errors import BadNumber

NO_EXPERT = -1


@dataclass(frozen=True, eq=False)
class Router:
    """Linear probes, one per harm, that choose the expert of a HeadEdit for an image, if any.

    A probe reads every hidden state of a sequence, such as those of the prompt's tokens, and sums up its evidence:

        score = log sum_t exp(weight h_t + bias), over the states t

    weight: [p, H] float32; bias: [p] float32; expert: [p] int64, the expert of each probe. The expert of the highest
    score above 0 applies; without one the image is drawn as by the base codebook, bit for bit.
    """

    weight: Tensor
    bias: Tensor
    expert: Tensor

    def scores(self, states: Tensor, mask: Tensor) -> Tensor:
        """Score [B, p] float32 of states [B, T, H], bool [B, T] False at padding."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        each = states.float() @ weight.T + bias
        return each.masked_fill(~mask[:, :, None], -torch.inf).logsumexp(1)

    def choose(self, states: Tensor, mask: Tensor) -> Tensor:
        """The expert of each row, [B] int64, or NO_EXPERT; arguments as in `scores`.

        Raises BadNumber for a score of NaN, which is neither above 0 nor below.
        """
        best = self.scores(states, mask).max(1)
        if bool(best.values.isnan().any()):
            raise BadNumber("router score", "NaN")
        return torch.where(best.values > 0, self.expert.to(states.device)[best.indices], NO_EXPERT)


@dataclass(frozen=True, eq=False)
class HalfwayProbe:
    """A probe run halfway through generation. It catches harm that the prompt router missed.

    after: the number of tokens sampled by then, from 1; probes: a router of features, [p, M], that reads one state an
    image: the mean feature of those tokens, sampled without an edit. If it fires, the image restarts under that expert,
    and becomes the image that it would have been if the prompt router had fired.
    """

    after: int
    probes: Router

    def choose(self, mean: Tensor) -> Tensor:
        """The expert of each image, [B] int64, or NO_EXPERT, by its mean feature [B, M]."""
        return self.probes.choose(mean[:, None], torch.ones(mean.shape[0], 1, dtype=torch.bool, device=mean.device))


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """A routed low-rank edit of the image head by e experts, LoRA-like: of the features g [.., M], not of K rows of W.

    basis: [e, M, k] float32, orthonormal or zero columns: each expert's Harmful Space, removed from g
    mean:  [M] float32: the benign mean feature, the point on which the spaces are centred
    down:  [e, M, r] float32, up: [e, r, M] float32: the tuned parts; each reads its harmless remainder only
    router: reads the prompt, [p, H]; None applies the first expert to every image
    bias: [e, K] float32, added to the logits: suppression of codes; None adds nothing
    probe: run halfway where the router is silent; None where the prompt alone decides
    guidance: in [0, 1], the share left of a request's guidance s where an expert applies: 1 + guidance (s - 1)

        x = g - mean;  h = x - basis basis^T x;  g' = mean + h + h down up;  logits = W g' + b + bias
    """

    basis: Tensor
    mean: Tensor
    down: Tensor
    up: Tensor
    router: Router | None = None
    bias: Tensor | None = None
    probe: HalfwayProbe | None = None
    guidance: float = 1.0

    def apply(self, features: Tensor, expert: int = 0) -> Tensor:
        """Return the features edited by one expert, same shape [.., M], dtype and device as `features`."""
        tables = (self.basis[expert], self.mean, self.down[expert], self.up[expert])
        basis, mean, down, up = (t.to(features) for t in tables)
        centred = features - mean
        harmless = centred - (centred @ basis) @ basis.T
        return mean + harmless + (harmless @ down) @ up

    def on(self, device: torch.device) -> HeadEdit:
        """Return the edit with the tensors of `apply` and the bias on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        basis, mean, down, up = (t.to(device) for t in (self.basis, self.mean, self.down, self.up))
        return replace(self, basis=basis, mean=mean, down=down, up=up, bias=bias)

    def choose(self, states: Tensor, mask: Tensor) -> Tensor:
        """The expert for each prompt, [B] int64, or NO_EXPERT; its states [B, T, H] and mask [B, T] as in Router."""
        if self.router is None:
            return torch.zeros(states.shape[0], dtype=torch.int64, device=states.device)
        return self.router.choose(states, mask)


@dataclass(frozen=True, eq=False)
class Codebook:
    """One version of a model's codebook.

    version: "v0", "v1", ...; v0 is the model's own.
    family: the engine family it belongs to, e.g. "janus".
    model_hash: sha256 of the weights it was made for; another model must refuse it.
    pixel: [K, D] float32 on the CPU: the decoder's look-up table.
    output: an edit of the image head, or None.
    """

    version: str
    family: str
    model_hash: str
    pixel: Tensor
    output: HeadEdit | None = None
