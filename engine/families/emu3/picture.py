"""Image tokens to pixels and back by an Emu3 VQ model's own layers: one frame of the video that it models.

Pure functions of their arguments: nothing here writes to the model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Emu3VQVAE

from engine.families.code_rows import nearest


def decode_one(vq: Emu3VQVAE, grid: tuple[int, int], tokens: Tensor, table: Tensor) -> Tensor:
    """Decode one image: tokens [N] int64 and a table [K, D] -> [1, 3, H, W], to be clamped to [-1, 1].

    Differentiable in `table`, whose rows are read twice: by the first convolution and by every spatial norm. The other
    frames, which transformers computes beside it and leaves out, are not computed: the same sums for a quarter of the
    work, whose last bits differ where a convolution adds them otherwise for four images than for one.
    """
    decoder, rows_columns = vq.decoder, grid
    looked_up = table[tokens].to(vq.post_quant_conv.conv.weight.dtype)  # [N, D]
    codes = looked_up.view(1, 1, *rows_columns, -1).permute(0, 4, 1, 2, 3).contiguous()  # [1, D, 1, rows, columns]
    both = torch.cat([vq.post_quant_conv(codes), codes])
    for layer in decoder.time_res_stack:
        both = layer(both)
    for layer in decoder.time_conv:
        both = layer(both)
        both = both * torch.sigmoid(both)
    hidden, guide = both[:, :, 0].chunk(2)  # of the first frame, [1, D, rows, columns] each
    hidden = decoder.middle_block(decoder.conv_in(hidden), guide)
    hidden = decoder.norm_out(decoder.up_block(hidden, guide), guide)
    image: Tensor = decoder.conv_out(hidden * torch.sigmoid(hidden))
    return image


def encode_one(vq: Emu3VQVAE, image: Tensor) -> Tensor:
    """Encode one image [1, 3, H, W] in [-1, 1] by the model's own table: tokens [N] int64."""
    frames = image.to(vq.dtype)[:, None].repeat(1, vq.config.temporal_downsample_factor, 1, 1, 1)
    latent = vq.quant_conv(vq.encoder(frames).permute(0, 2, 1, 3, 4))  # [1, D, 1, rows, columns]
    return nearest(latent[0, :, 0].flatten(1).T, vq.quantize.embedding.weight)
