"""Image tokens to pixels, by a Janus VQ model's own layers and the pixel table that is handed in.

Pure functions of their arguments: nothing here writes to the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from codebook.tensors import finite

DecodeOne = Callable[[Tensor, Tensor], Tensor]  # `decode_one` of some VQ model


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


class FastGroupNorm(nn.GroupNorm):
    """GroupNorm by our GPU kernel: torch's takes longer over one image than the convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        """As nn.GroupNorm, for one image [1, C, H, W]."""
        if torch.is_grad_enabled() or not x.is_cuda:
            return super().forward(x)
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        return kernels.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def use_fast_norms(vq: JanusVQVAE) -> None:
    """Replace the GroupNorms of a VQ model's decoder by FastGroupNorm."""
    for module in vq.decoder.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FastGroupNorm


def decode(decode_one: DecodeOne, tokens: Tensor, pixel: Tensor) -> Tensor:
    """Tokens [B, N] int64 and a table [K, D], or [B, K, D] one an image -> images [B, 3, H, W] float32 in [-1, 1].

    Raises BadNumber where pixels are NaN or infinite.
    """
    # One image at a time: convolution kernels are not batch-invariant.
    images = [decode_one(*one) for one in zip(tokens, pixel.expand(tokens.shape[0], -1, -1), strict=True)]
    return finite("pixels", torch.cat(images))


def preview(decode_one: DecodeOne, grid: tuple[int, int], tokens: Tensor, pixel: Tensor) -> Tensor:
    """The first tokens [n] int64 of an image and a table [K, D] -> [1, 3, H, W], grey in the cells not drawn yet.

    grid: of the whole image, in rows and columns of tokens. Raises BadNumber as `decode` does.
    """
    rows, columns = grid
    missing = rows * columns - tokens.shape[0]
    # The last token stands in for those to come: a decoder mixes neighbouring cells.
    image = finite("pixels", decode_one(F.pad(tokens, (0, missing), value=int(tokens[-1])), pixel))
    known = (torch.arange(rows * columns, device=image.device) < tokens.shape[0]).view(1, 1, rows, columns)
    return image * F.interpolate(known.to(image), image.shape[2:])
