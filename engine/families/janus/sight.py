"""Sight of a Janus model: images through its vision tower, as its language model reads them.

Knows the tower and its statistics. Knows nothing of questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration


class Sight:
    """The vision tower of a model. mean, deviation: of pixels in [0, 1], by channel."""

    def __init__(self, model: JanusForConditionalGeneration, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.model = model
        device = model.lm_head.weight.device
        self._mean, self._deviation = (torch.tensor(v, device=device)[:, None, None] for v in (mean, deviation))

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings of images [B, 3, H, W] in [-1, 1]: [B, image tokens, H]."""
        weight = self.model.lm_head.weight
        normal = ((images.to(weight.device).float() + 1.0) / 2.0 - self._mean) / self._deviation
        # One image at a time: the vision tower is not batch-invariant, and a verdict must be.
        embedded = [self.model.model.get_image_features(image[None].to(weight.dtype)).pooler_output for image in normal]
        return torch.cat(embedded)
