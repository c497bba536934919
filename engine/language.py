"""The Llama stack of a model, read step by step: rows of unequal length, padded on the left, over preallocated keys.

One code path reads prompts, single tokens and whole teacher-forced images. Knows no images and no chat format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm


@dataclass
class Context:
    """What R rows have read so far; `LanguageStack.read` extends it in place.

    keys, values: [layers, R, heads, S, d]; visible: [R, S] bool, False at padding; lengths: [R] int64 tokens read,
    padding not counted; filled: how many of the S places are taken.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    lengths: Tensor
    filled: int = 0

    def fork(self, times: int, room: int) -> Context:
        """Return a context of R * times rows, row r `times` times in a row, with `room` free places."""

        def widen(cache: Tensor) -> Tensor:
            return F.pad(cache[:, :, :, : self.filled].repeat_interleave(times, 1), (0, 0, 0, room))

        visible = F.pad(self.visible[:, : self.filled].repeat_interleave(times, 0), (0, room))
        lengths = self.lengths.repeat_interleave(times, 0)
        return Context(widen(self.keys), widen(self.values), visible, lengths, self.filled)


class LanguageStack:
    """Reads embeddings with the weights of a transformers LlamaModel; the weights stay where they are."""

    def __init__(self, llama: LlamaModel, positions: int) -> None:
        """Take the model's layers; `positions` is the longest row that will be read, in tokens."""
        self._llama = llama
        self._layers = cast(list[LlamaDecoderLayer], list(llama.layers))
        attention = self._layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._heads = attention.k_proj.out_features // self._head_dim  # of keys and values
        places = torch.arange(positions, device=llama.embed_tokens.weight.device)[None]
        with torch.no_grad():
            cos, sin = llama.rotary_emb(llama.embed_tokens.weight, places)
        self._cos, self._sin = cos[0], sin[0]  # [positions, d]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [..] -> embeddings [.., H]."""
        embedded: Tensor = self._llama.embed_tokens(ids)
        return embedded

    def context(self, rows: int, places: int) -> Context:
        """Return an empty context of `rows` rows with `places` places each."""
        weight = self._llama.embed_tokens.weight
        shape = (len(self._layers), rows, self._heads, places, self._head_dim)
        return Context(
            weight.new_zeros(shape),
            weight.new_zeros(shape),
            torch.zeros(rows, places, dtype=torch.bool, device=weight.device),
            torch.zeros(rows, dtype=torch.int64, device=weight.device),
        )

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> tuple[Tensor, Context]:
        """Read token rows of unequal length; return their last states [R, T, H] and a context with `room` places.

        Rows are padded on the left: the last state is that of the last token.
        """
        width = max(map(len, rows))
        device = self._llama.embed_tokens.weight.device
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        visible = torch.arange(width, device=device) >= width - lengths[:, None]
        context = self.context(len(rows), width + room)
        return self.read(self.embed(ids), context, visible), context

    def read(self, embeddings: Tensor, context: Context, visible: Tensor | None = None) -> Tensor:
        """Read T more embeddings a row, [R, T, H]; return their last hidden states [R, T, H] and extend `context`.

        visible: [R, T] bool, False where a row is padded; None reads all. At padded places the result means nothing.
        """
        start, stop = context.filled, context.filled + embeddings.shape[1]
        context.visible[:, start:stop] = True if visible is None else visible
        new = context.visible[:, start:stop]
        places = (context.lengths[:, None] + new.cumsum(1) - 1).clamp(min=0)
        cos, sin = self._cos[places][:, None], self._sin[places][:, None]  # [R, 1, T, d]
        mask = self._mask(context, start, stop, embeddings.dtype)
        hidden = embeddings
        for number, layer in enumerate(self._layers):
            keys, values = context.keys[number, :, :, :stop], context.values[number, :, :, :stop]
            hidden = hidden + self._attend(layer, hidden, keys, values, cos, sin, mask)
            hidden = hidden + layer.mlp(self._norm(layer.post_attention_layernorm, hidden))
        context.filled = stop
        context.lengths = context.lengths + new.sum(1)
        return self._norm(self._llama.norm, hidden)

    def _attend(
        self,
        layer: LlamaDecoderLayer,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
    ) -> Tensor:
        attention, rows, count = layer.self_attn, hidden.shape[0], hidden.shape[1]
        normed = self._norm(layer.input_layernorm, hidden)
        query, key, value = (
            project(normed).view(rows, count, -1, self._head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys[:, :, -count:] = _rotate(key, cos, sin)
        values[:, :, -count:] = value
        grouped = query.shape[1] != keys.shape[1]
        seen = F.scaled_dot_product_attention(_rotate(query, cos, sin), keys, values, mask, enable_gqa=grouped)
        projected: Tensor = attention.o_proj(seen.transpose(1, 2).reshape(rows, count, -1))
        return projected

    @staticmethod
    def _mask(context: Context, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [R, 1, T, stop]: 0 at earlier visible places and at oneself, -inf elsewhere."""
        place = torch.arange(stop, device=context.visible.device)
        query = place[start:, None]
        # Oneself also at padding: a row with nothing to look at would be NaN.
        seen = (context.visible[:, None, :stop] & (place < query)) | (place == query)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]

    @staticmethod
    def _norm(norm: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, the halves convention: heads [R, heads, T, d], cos and sin [R, 1, T, d]."""
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin
