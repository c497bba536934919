"""Image tokens to pixels by a Janus VQ model's own layers.

A pure function of its arguments: nothing here writes to the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE


def decode_one(vq: JanusVQVAE, tokens: Tensor, table: Tensor) -> Tensor:
    """Decode one image: tokens [N] int64 and a table [K, D] -> [1, 3, H, W] float32 in [-1, 1].

    Differentiable in `table`. Its rows are L2-normalised after the look-up, so only their direction counts.
    """
    convolution = vq.post_quant_conv
    looked_up = F.normalize(table[tokens], p=2.0, dim=-1).to(convolution.weight.dtype)  # [N, D]
    grid = (
        looked_up.view(1, *vq.quantize.quant_state_dims, -1).permute(0, 3, 1, 2).contiguous()
    )  # [1, D, rows, columns]
    image: Tensor = vq.decoder(convolution(grid)).float()
    # Infinity would be clamped to black or white, and pass for an image.
    return torch.where(image.isinf(), torch.nan, image).clamp(-1.0, 1.0)
