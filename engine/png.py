"""Images as bytes: levels of 8 bits, and PNG files with text chunks that say how they were made. No files."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

FAST = 1  # zlib level: at most half of the time of the default level, for slightly larger files


def encode_png(image: Tensor, text: Mapping[str, str]) -> bytes:
    """Image [H, W, 3] uint8 on the CPU -> a PNG file with one text chunk a key; the same input gives the same bytes.

    Values beyond Latin-1 become international (iTXt) chunks.
    """
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    file = BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG", pnginfo=chunks, compress_level=FAST)
    return file.getvalue()


def to_bytes(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] float in [-1, 1] -> [B, H, W, 3] uint8 on the CPU, rounded to the nearest level."""
    levels = ((images.detach() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()
