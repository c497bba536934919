"""Revision of prompts: what the model itself would rather be asked to draw, for images whose version has it rewrite.

Knows the model's rewriting and its tokenizer. Knows nothing of batches, queues and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from core.errors import BadInput
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served


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
