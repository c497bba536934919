"""Image tokens to pixels, image by image, under the pixel table that is handed in.

Pure functions of their arguments: nothing here writes to the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from codebook.tensors import finite
from engine.model import ModelFacts

DecodeOne = Callable[[Tensor, Tensor], Tensor]  # as Parts.picture


def decode(decode_one: DecodeOne, tokens: Tensor, pixel: Tensor) -> Tensor:
    """Tokens [B, N] int64 and a table [K, D], or [B, K, D] one an image -> images [B, 3, H, W] float32 in [-1, 1].

    Raises BadNumber where pixels are NaN or infinite.
    """
    # One image at a time: convolution kernels are not batch-invariant.
    images = [decode_one(*one) for one in zip(tokens, pixel.expand(tokens.shape[0], -1, -1), strict=True)]
    return _shown(torch.cat(images))


def preview(decode_one: DecodeOne, facts: ModelFacts, tokens: Tensor, pixel: Tensor) -> Tensor:
    """The first tokens [n] int64 of an image and a table [K, D] -> [1, 3, H, W], grey in the cells not drawn yet.

    n is at least the codes of a cell. Raises BadNumber as `decode` does.
    """
    (rows, columns), depth = facts.grid, facts.depth
    drawn = tokens.shape[0] // depth
    cells = tokens[: drawn * depth].view(drawn, depth)
    # The last cell stands in for those to come: a decoder mixes neighbouring cells.
    padded = torch.cat([cells, cells[-1:].expand(rows * columns - drawn, -1)])
    image = _shown(decode_one(padded.flatten(), pixel))
    known = (torch.arange(rows * columns, device=image.device) < drawn).view(1, 1, rows, columns)
    return image * F.interpolate(known.to(image), image.shape[2:])


def _shown(images: Tensor) -> Tensor:
    """Decoded images in [-1, 1]. Raises BadNumber before infinity is clamped to black or white, and passes for one."""
    return finite("pixels", images.float()).clamp(-1.0, 1.0)
