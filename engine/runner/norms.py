"""Norms of a decoder: RMSNorm of hidden states, and the norm of queries and keys by head. Batch-invariant.

Knows tensors. Knows nothing of layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.backbone import LayerOptions


class Norm(NamedTuple):
    """RMSNorm over the last dimension, times gain [inputs]."""

    gain: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [.., inputs]."""
        if x.is_cuda:
            from engine.runner import kernels  # needs triton, which comes with torch for a GPU

            return kernels.rms_norm(x, self.gain, self.epsilon)
        return F.rms_norm(x, x.shape[-1:], self.gain, self.epsilon)


class HeadNorm(NamedTuple):
    """Norm over the head dimension of queries and keys [R, T, n + h, d], times gain and plus bias [n + h, d].

    is_centred: LayerNorm; else RMSNorm.
    """

    gain: Tensor
    bias: Tensor | None
    epsilon: float
    is_centred: bool

    @classmethod
    def of(cls, attention: Any, options: LayerOptions) -> HeadNorm:  # noqa: ANN401  (a module of transformers)
        """Read the norms of an attention module: of all heads alike, or of each head."""
        counts = (attention.q_proj.out_features, attention.k_proj.out_features)
        heads = [count // attention.head_dim for count in counts]
        norms = attention.q_norm, attention.k_norm

        def joined(name: str) -> Tensor:
            parts = zip(norms, heads, strict=True)
            return torch.cat([getattr(norm, name).detach().expand(count, -1) for norm, count in parts])

        is_centred = options.head_norm == "layer"
        epsilon = 1e-5 if is_centred else float(norms[0].variance_epsilon)  # of ChameleonLayerNorm: written in its code
        return cls(joined("weight"), joined("bias") if is_centred else None, epsilon, is_centred)

    def __call__(self, heads: Tensor) -> Tensor:
        """Normalise."""
        if self.is_centred:
            normal = F.layer_norm(heads, heads.shape[-1:], None, None, self.epsilon) * self.gain
            return normal if self.bias is None else normal + self.bias
        return F.rms_norm(heads, heads.shape[-1:], None, self.epsilon) * self.gain


def norm_of(module: Any, offset: float) -> Norm:  # noqa: ANN401  (an RMSNorm of transformers)
    """Return the RMSNorm of a module; offset: what its code adds to the gains."""
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    gain = module.weight.detach()
    return Norm(gain if offset == 0.0 else gain + offset, float(epsilon))
