"""The codebook as a frozen value: the pixel table and, where a version has one, its edit of the output table.

A codebook maps code ids to pixel patterns (the pixel table) and, through the image head, the language model's
features to code ids (the output table). Nothing here is ever changed in place: an edit makes a new value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.errors import BadNumber

NO_EXPERT = -1


@dataclass(frozen=True, eq=False)
class Router:
    """Linear probes, one a harm, that decide which expert of the output edit applies to an image, if any.

    A probe looks at every state it is shown, such as each token of the prompt as the language model has read it, and
    sums up where it sees its harm:

        score = log sum_t exp(weight h_t + bias), over the states t

    weight: [p, H] float32; bias: [p] float32; expert: [p] int64, whose harm each probe looks for. The expert of the
    highest score above 0 applies; where none is, the base tables do, bit for bit.
    """

    weight: Tensor
    bias: Tensor
    expert: Tensor

    def scores(self, states: Tensor, seen: Tensor) -> Tensor:
        """Score [B, p] float32 of states [B, T, H], bool [B, T] False at padding."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        each = states.float() @ weight.T + bias
        return each.masked_fill(~seen[:, :, None], -torch.inf).logsumexp(1)

    def choose(self, states: Tensor, seen: Tensor) -> Tensor:
        """The expert of each row, [B] int64, or NO_EXPERT; arguments as in `scores`.

        Raises BadNumber for a score of NaN, which is neither above 0 nor below.
        """
        best = self.scores(states, seen).max(1)
        if bool(best.values.isnan().any()):
            raise BadNumber("router score", "NaN")
        return torch.where(best.values > 0, self.expert.to(states.device)[best.indices], NO_EXPERT)


@dataclass(frozen=True, eq=False)
class HalfwayProbe:
    """A second chance for a router: the picture on its way tells what the prompt said in words that it does not know.

    after: how many tokens are drawn by then, from 1; probes: a router of features, [p, M], that is shown one state an
    image: the mean feature of those tokens as they were drawn, without an edit. Where a probe fires the image is begun
    again under its expert, and becomes what it would have been if the prompt had fired.
    """

    after: int
    probes: Router

    def choose(self, mean: Tensor) -> Tensor:
        """The expert of each image, [B] int64, or NO_EXPERT, by its mean feature [B, M]."""
        return self.probes.choose(mean[:, None], torch.ones(mean.shape[0], 1, dtype=torch.bool, device=mean.device))


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """An edit of the output table by e experts: low-rank, applied to the features g [.., M] instead of to K rows of W.

    basis: [e, M, k] float32, orthonormal or zero columns: each expert's Harmful Space, removed from g
    mean:  [M] float32: the benign mean feature, the point the spaces are centred on
    down:  [e, M, r] float32, up: [e, r, M] float32: the tuned parts; each reads its harmless remainder only
    router: shown the prompt, [p, H]; None applies the first expert to every image
    bias: [e, K] float32, added to the logits: suppression of codes; None adds nothing
    look: once more, where the router is silent; None where the prompt alone decides
    guidance: in [0, 1], the share left of a request's guidance s where an expert applies: 1 + guidance (s - 1)

        x = g - mean;  h = x - basis basis^T x;  g' = mean + h + h down up;  logits = W g' + b + bias
    """

    basis: Tensor
    mean: Tensor
    down: Tensor
    up: Tensor
    router: Router | None = None
    bias: Tensor | None = None
    look: HalfwayProbe | None = None
    guidance: float = 1.0

    def apply(self, features: Tensor, expert: int = 0) -> Tensor:
        """Return the features edited by one expert, same shape [.., M], dtype and device as `features`."""
        tables = (self.basis[expert], self.mean, self.down[expert], self.up[expert])
        basis, mean, down, up = (t.to(features) for t in tables)
        centred = features - mean
        harmless = centred - (centred @ basis) @ basis.T
        return mean + harmless + (harmless @ down) @ up

    def on(self, device: torch.device) -> HeadEdit:
        """Return the edit with what `apply` and the bias need on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        basis, mean, down, up = (t.to(device) for t in (self.basis, self.mean, self.down, self.up))
        return replace(self, basis=basis, mean=mean, down=down, up=up, bias=bias)

    def choose(self, states: Tensor, seen: Tensor) -> Tensor:
        """The expert for each prompt, [B] int64, or NO_EXPERT; its states [B, T, H] and seen [B, T] as in Router."""
        if self.router is None:
            return torch.zeros(states.shape[0], dtype=torch.int64, device=states.device)
        return self.router.choose(states, seen)


@dataclass(frozen=True, eq=False)
class Codebook:
    """One version of a model's codebook.

    version: "v0", "v1", ...; v0 is the model's own.
    family: the engine family it belongs to, e.g. "janus".
    model_hash: sha256 of the weights it was made for; another model must refuse it.
    pixel: [K, D] float32 on the CPU: the decoder's look-up table.
    output: an edit of the output table, or None.
    """

    version: str
    family: str
    model_hash: str
    pixel: Tensor
    output: HeadEdit | None = None

    @property
    def binds(self) -> str:
        """When the version takes hold of an image: at "admission" (it changes sampling) or at "decode"."""
        return "decode" if self.output is None else "admission"
