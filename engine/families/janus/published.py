"""Janus by transformers' own code: greedy images by its `generate`, pixels by its VQ model.

Knows transformers' classes. Knows nothing of this project's engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor, LogitsProcessor, LogitsProcessorList

from engine.unified.published import Greedy, Published


class _Tape(LogitsProcessor):
    """Keeps the logits [2, K] of each step, of the prompt and of the unconditional one, before guidance."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ANN401  (torch's own, which transformers types so)
        """See LogitsProcessor."""
        self.steps.append(scores[0].float().cpu())
        return scores


def published_janus(model: JanusForConditionalGeneration, processor: JanusProcessor, version: str) -> Published:
    """Make the reference of a model and its processor. version: of transformers."""
    model.train(False)
    vq = model.model.vqmodel

    def greedy(prompt: str, guidance: float, count: int) -> Greedy:
        talk: Any = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        inputs: Any = processor(text=[text], generation_mode="image", return_tensors="pt")
        tape = _Tape()
        model.model.vision_model.config.num_image_tokens = count  # of `generate` the number of steps
        with torch.no_grad():
            tokens: Any = model.generate(
                **inputs.to(model.device),
                generation_mode="image",
                do_sample=False,
                guidance_scale=guidance,
                logits_processor=LogitsProcessorList([tape]),
            )
        return Greedy(tokens[0].cpu(), torch.stack(tape.steps))

    def decode(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            pixels: Any = vq.decode(tokens[None].to(model.device))
        image: Tensor = pixels.float().clamp(-1, 1)
        return image

    source = f"transformers {version}, JanusForConditionalGeneration"
    table = vq.quantize.embedding.weight.detach().float().cpu()
    return Published(source, vq.config.num_patches**2, table, greedy, decode)
