"""The codebook as a frozen value: the pixel table and, where a version has one, its edit of the image head.

A codebook maps code ids to pixel patterns (the pixel table) and, through the image head, the language model's
features to code ids. Nothing here is ever changed in place: an edit makes a new value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codebook.mode import Mode
from codebook.router import HalfwayProbe, Router


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
    groups: [e] int64, of each expert; experts of different groups may apply to one image, one after the other, the
        highest score first: a prompt may ask for two harms. None: one expert an image
    mode: of images that fire. Halfway, where the prompt did not fire, "rewrite" edits

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
    groups: Tensor | None = None
    mode: Mode = "edit"

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

    def experts(self, states: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
        """The experts for each prompt, in the order in which they apply; states [B, T, H], mask [B, T] as in Router."""
        return [(0,)] * len(states) if self.router is None else self.router.experts(states, mask, self.groups)


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

    @property
    def mode(self) -> Mode:
        """What becomes of images that fire; "edit" for a codebook under which none does."""
        return "edit" if self.output is None else self.output.mode

    def in_mode(self, mode: Mode) -> Codebook:
        """Return the codebook with another mode; itself, if it has no edit of the image head."""
        return self if self.output is None else replace(self, output=replace(self.output, mode=mode))
