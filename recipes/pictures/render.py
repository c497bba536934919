"""Grids of pictures for a person to look at."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_grid(images: Tensor, columns: int, path: Path, scale: int = 1) -> None:
    """Write images [B, 3, H, W] in [-1, 1] as one PNG, row by row."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * height, columns * width), 255, dtype=torch.uint8)
    for i in range(count):
        top, left = (i // columns) * height, (i % columns) * width
        sheet[:, top : top + height, left : left + width] = pixels[i]
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
