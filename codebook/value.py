"""The codebook as a frozen value: the pixel table and, where a version has one, its edit of the output table.

A codebook maps code ids to pixel patterns (the pixel table) and, through the image head, the language model's
features to code ids (the output table). Nothing here is ever changed in place: an edit makes a new value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Router:
    """Linear probes, one a harm, that decide once an image whether the output edit applies to it.

    weight: [p, M] float32; bias: [p] float32. The edit applies where any of weight @ (g0 - mean) + bias > 0 for the
    feature g0 that predicts the first image token under the prompt. Elsewhere the base tables apply, bit for bit.
    """

    weight: Tensor
    bias: Tensor

    def fires(self, centred: Tensor) -> Tensor:
        """Bool [B], on their device: which of the features g0 - mean, [B, M] float32, some probe takes for harm."""
        return (centred @ self.weight.to(centred.device).T + self.bias.to(centred.device) > 0).any(1)


@dataclass(frozen=True, eq=False)
class OutputEdit:
    """A low-rank edit of the output table, applied to the features g [.., M] instead of to the K rows of W.

    basis: [M, k] float32, orthonormal columns: the Harmful Space, removed from g
    mean:  [M] float32: the benign mean feature, the point the space is centred on
    down:  [M, r] float32, up: [r, M] float32: the tuned part; it reads the harmless remainder only
    router: None applies the edit to every image

        x = g - mean;  h = x - basis basis^T x;  g' = mean + h + h down up;  logits = W g' + bias
    """

    basis: Tensor
    mean: Tensor
    down: Tensor
    up: Tensor
    router: Router | None = None

    def apply(self, features: Tensor) -> Tensor:
        """Return the edited features, same shape [.., M], dtype and device as `features`."""
        basis, mean, down, up = (t.to(features) for t in (self.basis, self.mean, self.down, self.up))
        centred = features - mean
        harmless = centred - (centred @ basis) @ basis.T
        return mean + harmless + (harmless @ down) @ up

    def routes(self, first_features: Tensor) -> Tensor:
        """Return bool [B]: to which images the edit applies, from their first features [B, M]."""
        if self.router is None:
            return torch.ones(first_features.shape[0], dtype=torch.bool, device=first_features.device)
        centred = first_features.float() - self.mean.to(first_features.device)
        return self.router.fires(centred)


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
    output: OutputEdit | None = None

    @property
    def binds(self) -> str:
        """When the version takes hold of an image: at "admission" (it changes sampling) or at "decode"."""
        return "decode" if self.output is None else "admission"
