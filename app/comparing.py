"""Pixel difference of two images of one prompt. Pure arithmetic on finished images."""

from __future__ import annotations

import base64
from uuid import uuid4

import torch

from app.drawing import Picture
from app.schemas import CompareResponse, PixelDifference
from engine.png import encode_png


def compared(model_id: str, left: Picture, right: Picture) -> CompareResponse:
    """Return both images and their difference; they have one size and one seed."""
    return CompareResponse(
        id=uuid4().hex,
        model=model_id,
        seed=left.request.sampling.seed,
        same_tokens=torch.equal(left.drawn.tokens, right.drawn.tokens),
        images=[left.to_response(), right.to_response()],
        difference=_difference(left, right),
    )


def _difference(left: Picture, right: Picture) -> PixelDifference:
    apart = (left.drawn.image.int() - right.drawn.image.int()).abs().amax(dim=-1)  # [H, W], 0..255
    differs = apart > 0
    mask = (differs * 255).to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()
    return PixelDifference(
        pixels=int(differs.sum()),
        share=float(differs.float().mean()),
        largest=int(apart.max()),
        b64_png=base64.b64encode(encode_png(mask, {})).decode(),
    )
