"""Pixel difference of two images of one prompt. Pure arithmetic on finished images."""

from __future__ import annotations

import base64

import torch

from app.codebook_schemas import CompareResponse, PixelDifference
from app.drawing import to_response
from engine.image_result import ImageResult
from engine.png import encode_png


def compared(id: str, model_id: str, left: ImageResult, right: ImageResult) -> CompareResponse:
    """Return both images and their difference; they have one size and one seed. id: of the call."""
    return CompareResponse(
        id=id,
        model=model_id,
        seed=left.request.sampling.seed,
        same_tokens=torch.equal(left.tokens, right.tokens),
        images=[to_response(left), to_response(right)],
        difference=_difference(left, right),
    )


def _difference(left: ImageResult, right: ImageResult) -> PixelDifference:
    apart = (left.image.int() - right.image.int()).abs().amax(dim=-1)  # [H, W], 0..255
    differs = apart > 0
    mask = (differs * 255).to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()
    return PixelDifference(
        pixels=int(differs.sum()),
        share=float(differs.float().mean()),
        largest=int(apart.max()),
        b64_png=base64.b64encode(encode_png(mask, {})).decode(),
    )
