"""Facts of a model whose language model reads an image as codes, and sizes of its KV rows, from its configuration.

Knows numbers. Knows nothing of any one family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from engine.instructions import Instructions
from engine.model import ModelFacts
from engine.runner.decoder import blocks
from engine.unified.served_model import LONGEST_PROMPT


@dataclass(frozen=True)
class Name:
    """Who a model is: its family, the name it was asked for by, and the hash of its weights."""

    family: str
    model_id: str
    model_hash: str

    @classmethod
    def of_random(
        cls,
        family: str,
        model_id: str,
        device: torch.device,
        dtype: torch.dtype,
        geometry: object,
        modules: Iterable[nn.Module],
    ) -> Name:
        """Return the name of a model with random weights, whose hash has all that they follow from.

        geometry: whose repr has all its sizes. modules: the weights, of which only names and shapes are read.
        """
        shapes = [(name, *tensor.shape) for module in modules for name, tensor in module.state_dict().items()]
        source = f"{model_id} {device.type} {dtype} {geometry!r} {shapes}"
        return cls(family, model_id, sha256(source.encode()).hexdigest())


def kv_row(text: Any, steps: int) -> int:  # noqa: ANN401  (a configuration of transformers)
    """Return the numbers of a KV row of any prompt with an image of `steps` steps, by a language model's sizes."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    positions = blocks(min(text.max_position_embeddings, LONGEST_PROMPT + steps))
    return int(2 * text.num_hidden_layers * heads * width * positions)


def facts_of(
    name: Name,
    side: int,
    image_size: int,
    table: Tensor,
    hidden: int,
    room: int,
    instructions: Instructions,
    dtype: torch.dtype,
) -> ModelFacts:
    """Return the facts. side: codes a side; hidden: H, and M; room: positions beside an image's."""
    codes, width = table.shape
    return ModelFacts(
        family=name.family,
        model_id=name.model_id,
        model_hash=name.model_hash,
        grid=(side, side),
        image_size=image_size,
        codes=codes,
        code_dim=width,
        feature_dim=hidden,
        hidden_dim=hidden,
        normalised=False,
        pixel_table_feeds_lm=False,
        max_prompt_tokens=min(room, LONGEST_PROMPT),
        categories=instructions.categories,
        guidance=instructions.sampling.guidance,
        temperature=instructions.sampling.temperature,
        judges_texts=instructions.text_question is not None,
        dtype=str(dtype).removeprefix("torch."),
        top_k=min(instructions.sampling.top_k, codes),
        top_p=instructions.sampling.top_p,
        judge_reads="codes",
    )
