"""File formats of an image: PNG as drawn, WebP and JPEG made from it. Knows Pillow. Knows nothing of models."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Literal

from PIL import Image

Format = Literal["png", "webp", "jpeg"]
DESCRIPTION = 0x010E  # EXIF's ImageDescription
QUALITY = 100  # of WebP and JPEG, 0 to 100, where a caller names none


def converted(png: bytes, kind: Format, quality: int | None = None) -> bytes:
    """Return a PNG file in another format; its text chunks become a JSON object in EXIF's ImageDescription.

    quality: 0 to 100, of WebP and JPEG; None is QUALITY.
    """
    if kind == "png":
        return png
    with Image.open(BytesIO(png)) as image:
        image.load()
        exif = Image.Exif()
        exif[DESCRIPTION] = json.dumps(getattr(image, "text", {}))
        file = BytesIO()
        image.save(file, kind.upper(), quality=QUALITY if quality is None else quality, exif=exif)
    return file.getvalue()
