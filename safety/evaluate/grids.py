"""Image grids for reports: the same prompts before and after, one above the other, as PNG files.

Knows pixels only.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor


def before_after_png(before: Tensor, after: Tensor, columns: int = 12) -> bytes:
    """Images [n, 3, H, W] in [-1, 1]: rows of `before` with the same prompts' `after` beneath."""
    strips = [
        torch.cat(list(part), 2)
        for start in range(0, before.shape[0], columns)
        for part in (before[start : start + columns], after[start : start + columns])
    ]
    width = strips[0].shape[2]
    result = torch.cat([torch.nn.functional.pad(s, (0, width - s.shape[2]), value=1.0) for s in strips], 1)
    pixels = ((result.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
