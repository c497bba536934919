"""Results of images as if callers had got them, for those who watch live verdicts."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.image_result import ImageResult
from engine.model import ImageRequest, Sampling, Verdict
from tests.support.serving import Server


def live_result(server: Server, version: str, prompt: str, unsafe: bool | None) -> ImageResult:
    """An image of a prompt under a version, whatever that is in the store, with the model's verdict; None: unjudged."""
    codebook = replace(server.service.store.load("v0"), version=version)
    verdict = Verdict((0.9,) * 3, "gore") if unsafe else Verdict((0.1,) * 3, "none")
    request, empty = ImageRequest(prompt, Sampling(0), codebook), torch.zeros(1, dtype=torch.int64)
    return ImageResult(server.service.engine.facts, request, empty, empty, None if unsafe is None else verdict, ())
