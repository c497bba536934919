"""Parts of a model whose image codes are words of its language model, from that model and a way from codes to pixels.

Knows the names that transformers gives to a causal language model. Knows nothing of any one family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.families.backbones import read_backbone
from engine.families.code_rows import image_head, text_head
from engine.families.facts import Name, facts_of
from engine.families.format_chat import Format, FormatChat
from engine.instructions import Instructions
from engine.runner.script import Script
from engine.unified.parts import Language, Parts


class Pixels(Protocol):
    """Codes to pixels and back, on the model's device. side: codes a side; size: pixels a side; table: [K, D]."""

    @property
    def side(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def table(self) -> Tensor: ...  # noqa: D102

    def decode_one(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Decode one image: tokens [N] int64, a table [K, D] -> [1, 3, H, W], to be clamped; differentiable."""

    def encode_one(self, image: Tensor) -> Tensor:
        """Encode one image [1, 3, H, W] in [-1, 1] by the model's own table: tokens [N] int64."""


def word_parts(
    name: Name,
    model: Any,  # noqa: ANN401  (transformers': `model`, the backbone, `lm_head` and `config`)
    tokenizer: Any,  # noqa: ANN401
    form: Format,
    codes: Sequence[int],
    pixels: Pixels,
    instructions: Instructions,
) -> Parts:
    """Make the parts of a model whose code k is the word `codes[k]`. Raises BadModel."""
    model.train(False).requires_grad_(False)
    config, count, embed = model.config, pixels.side**2, model.model.embed_tokens
    longest = config.max_position_embeddings
    sizes = pixels.side, pixels.size, pixels.table, config.hidden_size, longest - count
    facts = facts_of(name, *sizes, instructions, model.dtype)
    chat = FormatChat(tokenizer, form, count, facts.max_prompt_tokens)
    ids = torch.tensor(list(codes), device=model.lm_head.weight.device)

    def see(images: Tensor) -> Tensor:
        """Embeddings [B, N, H] of images [B, 3, H, W] in [-1, 1]: of the words of their codes."""
        embedded: Tensor = embed(ids[torch.stack([pixels.encode_one(image[None]) for image in images])])
        return embedded

    language = Language(read_backbone(model.model), text_head(model.lm_head, codes), chat, longest, see)
    head, script = image_head(model.lm_head, embed, codes), Script.plain(count)
    picture, encode = pixels.decode_one, pixels.encode_one
    return Parts(facts, instructions, language, head, script, pixels.table, picture, encode=encode)
