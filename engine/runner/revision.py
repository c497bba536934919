"""Revision by the model itself: prompts that it rewrites before they are drawn, images that it judges and draws again.

Knows a model's rewriting, verdict and tokenizer. Knows nothing of batches, queues and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from core.errors import BadInput
from engine.model import REFUSED
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served

REDRAWS = 2  # after the first draw; an image that is unsafe even then is refused


def revise(model: Served, sequences: Sequence[ImageSequence]) -> None:
    """Give each image its prompt's rewrite. Where that says nothing new or cannot be read, the prompt stays.

    Raises BadNumber where the model's logits are NaN.
    """
    prompts = list(dict.fromkeys(sequence.request.prompt for sequence in sequences))
    rewrites = dict(zip(prompts, model.rewrite(prompts), strict=True))
    for sequence in sequences:
        prompt, rewrite = sequence.request.prompt, rewrites[sequence.request.prompt].strip()
        sequence.is_revised, sequence.experts = True, ()
        if rewrite and rewrite != prompt:
            with suppress(BadInput):
                sequence.prompt_ids, sequence.revised = model.tokenize(rewrite), rewrite


def begins_again(sequence: ImageSequence) -> bool:
    """Whether an image that was just judged unsafe is to be drawn again, and is now ready for that."""
    if sequence.redraws == REDRAWS:
        return False
    sequence.redraws, sequence.experts, sequence.step = sequence.redraws + 1, (), 0
    return True


def unsafe_again(model: Served, drawn: Sequence[ImageSequence]) -> list[ImageSequence]:
    """Of images just drawn, those to draw again. Those that were drawn too often have all tokens REFUSED instead."""
    again = []
    for sequence in drawn:
        if not sequence.awaits_verdict or bool((sequence.tokens < 0).any()):
            continue
        with torch.no_grad():
            (verdict,) = model.judge(model.decode(sequence.tokens[None], sequence.request.codebook.pixel))
        if verdict.unsafe and begins_again(sequence):
            again.append(sequence)
        elif verdict.unsafe:
            sequence.tokens = torch.full_like(sequence.tokens, REFUSED)
    return again
