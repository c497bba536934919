"""Image tokens to pixels and back by a Janus VQ model's own layers.

Pure functions of their arguments: nothing here writes to the model.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from engine.families.code_rows import nearest


def decode_one(vq: JanusVQVAE, tokens: Tensor, table: Tensor) -> Tensor:
    """Decode one image: tokens [N] int64 and a table [K, D] -> [1, 3, H, W], to be clamped to [-1, 1].

    Differentiable in `table`. Its rows are L2-normalised after the look-up, so only their direction counts.
    """
    convolution = vq.post_quant_conv
    looked_up = F.normalize(table[tokens], p=2.0, dim=-1).to(convolution.weight.dtype)  # [N, D]
    grid = (
        looked_up.view(1, *vq.quantize.quant_state_dims, -1).permute(0, 3, 1, 2).contiguous()
    )  # [1, D, rows, columns]
    image: Tensor = vq.decoder(convolution(grid))
    return image


def encode_one(vq: JanusVQVAE, image: Tensor) -> Tensor:
    """Encode one image [1, 3, H, W] in [-1, 1] by the model's own table: tokens [N] int64.

    By direction, as decoding reads the table; transformers' own `encode` compares lengths too.
    """
    latent = vq.quant_conv(vq.encoder(image.to(vq.quant_conv.weight.dtype)))  # [1, D, rows, columns]
    rows = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)
    return nearest(F.normalize(latent[0].flatten(1).T.float(), dim=-1), rows)
