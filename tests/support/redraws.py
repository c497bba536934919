"""Mode redraw for models of the tests that draw in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from engine.model import REFUSED, ImageModel, ImageRequest
from engine.runner.revision import REDRAWS


def redrawn(
    model: ImageModel, requests: Sequence[ImageRequest], once: Callable[[Sequence[ImageRequest]], Tensor]
) -> Tensor:
    """What `once` draws, again for images of mode redraw that the model judges unsafe."""
    tokens = once(requests)
    for times in range(1, REDRAWS + 2):
        unsafe = [
            b
            for b, request in enumerate(requests)
            if request.codebook.mode == "redraw"
            and model.judge(model.decode(tokens[b : b + 1], request.codebook.pixel))[0].unsafe
        ]
        if unsafe and times <= REDRAWS:
            again = [replace(requests[b], sampling=requests[b].sampling.redrawn(times)) for b in unsafe]
            tokens[unsafe] = once(again)
        elif unsafe:
            tokens[unsafe] = REFUSED
    return tokens
