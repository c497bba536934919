"""A Llama-shaped decoder with a preallocated KV cache: prefill, extend, and the raw forward pass for CUDA graphs.

One code path reads prompts, single tokens and whole teacher-forced images, in rows of unequal length. It is
batch-invariant: on the CPU bit for bit. Knows no images and no chat format.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.backbone import Backbone, LayerOptions
from engine.runner.linear import Linear
from engine.runner.native.forward import NativeForward, Stack
from engine.runner.norms import HeadNorm, norm_of
from engine.runner.step.attention import attend, attend_apart, rotated, signed

# Of heads [R, T, n + 2 h, d] (queries, keys, values), and a layer's keys and values, into which theirs are written:
_Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # the attention's output [R, T, n d]
_Rotary = Callable[[Tensor, Tensor, Tensor], Tensor]  # the rotated queries [R, T, n, d]

PIECE = 1024  # tokens read together: attention on a CPU holds [heads, piece, positions] of each row
BLOCK = 16  # attention reads whole blocks of positions, so that a row's sums do not depend on their number


@dataclass
class KVCache:
    """Keys and values of R rows; `Decoder.extend` writes to it in place.

    keys, values: [layers, R, heads, S, d]; lengths: [R] int64, how many of its S positions each row has filled.
    longest: at least the largest of the lengths, known without asking the device.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int = 0

    def expand(self, times: int, room: int) -> KVCache:
        """Return a cache of R * times rows, row r repeated `times` times in a row, with `room` free positions."""
        positions = blocks(self.longest + room)

        def repeated(cache: Tensor) -> Tensor:
            layers, kv_rows, heads, _, width = cache.shape
            wide = cache.new_empty(layers, kv_rows, times, heads, positions, width)
            wide[:, :, :, :, : self.longest] = cache[:, :, None, :, : self.longest]
            wide[:, :, :, :, self.longest :] = 0.0  # what is masked must be a number all the same
            return wide.flatten(1, 2)

        lengths = self.lengths.repeat_interleave(times, 0)
        return KVCache(repeated(self.keys), repeated(self.values), lengths, self.longest)

    def advance(self, kv_rows: int, count: int) -> None:
        """Add `count` tokens to the lengths of the first `kv_rows` rows."""
        self.lengths[:kv_rows] += count
        self.longest += count

    def copy_row(self, row: int, source: KVCache, source_row: int) -> None:
        """Copy row `source_row` of `source` to row `row`; both may be the same cache."""
        positions = source.longest
        self.keys[:, row, :, :positions] = source.keys[:, source_row, :, :positions]
        self.values[:, row, :, :positions] = source.values[:, source_row, :, :positions]
        self.lengths[row] = source.lengths[source_row]
        self.longest = max(self.longest, positions)


class _Layer:
    """One decoder layer's weights, fused: query, key and value in one product, gate and up in another."""

    def __init__(self, layer: Any, options: LayerOptions) -> None:  # noqa: ANN401  (a layer of a Backbone)
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = norm_of(layer.input_layernorm, options.gain_offset)
        self.post_attention_norm = norm_of(layer.post_attention_layernorm, options.gain_offset)
        self.qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = Linear([attention.o_proj])
        self.gate_up = Linear([mlp.gate_proj, mlp.up_proj])
        self.down = Linear([mlp.down_proj])
        self.linears = (self.qkv, self.o_proj, self.gate_up, self.down)
        self.head_norm = None if options.head_norm is None else HeadNorm.of(attention, options)


class Decoder:
    """The stack of decoder layers. Holds no state but weights: many threads may read with it simultaneously.

    native: the forward pass over few tokens in C, with the same bits, where one was chosen.
    """

    def __init__(self, backbone: Backbone, positions: int) -> None:
        """Move the layers out of `backbone`, which is left without; `positions` is the longest row, in tokens.

        Raises BadModel for a layer that is not read as the model's own code reads it.
        """
        backbone.check()
        layers, self._options = backbone.layers, backbone.options
        attention: Any = layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._kv_heads: int = attention.k_proj.out_features // self._head_dim
        self._query_heads: int = attention.q_proj.out_features // self._head_dim
        self._embed = backbone.embed_tokens
        self._norm = norm_of(backbone.norm, self._options.gain_offset)
        like = attention.q_proj.weight
        self._device, self._dtype = like.device, like.dtype
        self.width = int(self._norm.gain.shape[0])  # H
        position_ids = torch.arange(blocks(positions), device=self._device)[None]
        with torch.no_grad():
            cos, sin = backbone.rotary_emb(like.new_zeros(1), position_ids)
            self._layers = []
            while len(layers):  # one by one, so that no more than one layer is in memory twice
                self._layers.append(_Layer(layers[0], self._options))
                del layers[0]
        self._cos, self._sin = cos[0], sin[0]  # [positions, d]
        self._signed_sin = signed(self._sin)
        self.native: NativeForward | None = None

    def warm(self) -> None:
        """Warm up the linear layers for any number of tokens."""
        for linear in self._layers[0].linears:  # the others have products of the same shapes
            linear.warm(sys.maxsize)

    @property
    def linears(self) -> list[Linear]:
        """The linear layers, in the order in which they multiply."""
        return [linear for layer in self._layers for linear in layer.linears]

    @property
    def stack(self) -> Stack:
        """The layers, for a forward pass of its own."""
        heads = self._query_heads, self._kv_heads, self._head_dim
        return Stack(self._layers, self._norm, self._options, heads, self._cos, self._signed_sin)

    def row_bytes(self, positions: int) -> int:
        """Bytes of one KV row of `positions` positions."""
        numbers: int = 2 * len(self._layers) * self._kv_heads * blocks(positions) * self._head_dim
        return numbers * int(self._dtype.itemsize)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [..] -> embeddings [.., H]."""
        embedded: Tensor = self._embed(ids)
        return embedded

    def new_cache(self, kv_rows: int, positions: int) -> KVCache:
        """Return an empty cache of `kv_rows` rows with at least `positions` positions each."""
        shape = (len(self._layers), kv_rows, self._kv_heads, blocks(positions), self._head_dim)
        lengths = torch.zeros(kv_rows, dtype=torch.int64, device=self._device)
        keys, values = (torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        return KVCache(keys, values, lengths)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Tensor, Tensor, KVCache]:
        """Read prompts of token ids, of unequal length, into a new cache with `room` more positions.

        Returns the hidden states [R, T, H], rows padded on the right to whole blocks, the hidden states [R, H] of each
        row's last token, and the cache.
        """
        lengths = [len(ids) for ids in prompts]
        width, device = blocks(max(lengths)), self._device
        padded = torch.tensor([[*ids, *itertools.repeat(0, width - len(ids))] for ids in prompts], device=device)
        cache = self.new_cache(len(prompts), width + room)
        states = self.extend(self.embed(padded), cache)
        cache.lengths, cache.longest = torch.tensor(lengths, device=device), max(lengths)
        return states, states[torch.arange(len(prompts), device=device), cache.lengths - 1], cache

    def extend(self, embeddings: Tensor, cache: KVCache, ends: Tensor | None = None) -> Tensor:
        """Read T more embeddings [R, T, H] into the first R rows of `cache`; return their last hidden states.

        They are read in pieces of PIECE, so that memory grows with T, not with its square. A row padded on the right
        reads its padding too, to no effect on the tokens before. The caller that pads sets `cache.lengths` back; what
        is read next overwrites the padding.

        ends: [R, n] int64, the positions among the T, all in the last piece, whose states are returned, [R, n, H]; the
        last layer computes no others.
        """
        hidden, pieces, start = [], torch.split(embeddings, PIECE, 1), 0
        for piece in pieces:
            kv_rows, count = piece.shape[:2]
            own = None if ends is None else ends - start if piece is pieces[-1] else ends[:, :0]
            hidden.append(self.forward(piece, cache, blocks(cache.longest + count), ends=own))
            start += count
            cache.advance(kv_rows, count)
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)

    def forward(
        self, embeddings: Tensor, cache: KVCache, bound: int, apart: bool = False, ends: Tensor | None = None
    ) -> Tensor:
        """As `extend`, but leaves the lengths of `cache` as they are; rows attend to their first `bound` positions.

        apart: on a CPU, to the bit as if a row's tokens were read one after the other; what is beyond its last position
        is read there, to no purpose. ends: as in `extend`, here of the embeddings. Takes only shapes and addresses from
        the host, so that a graph can record it.
        """
        kv_rows, count = embeddings.shape[:2]
        if self.native is not None and (apart or count == 1) and ends is None and kv_rows * count in self.native.sizes:
            return self.native(embeddings, cache.keys, cache.values, cache.lengths)
        prepare = self._attention_apart if apart else self._attention
        attention = prepare(cache, kv_rows, count, bound)
        hidden = embeddings
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            norms_after = self._options.norms_after
            attended = attention(self._heads(layer, hidden if norms_after else layer.input_norm(hidden)), keys, values)
            if ends is not None and layer is self._layers[-1]:  # nothing reads the others' states
                rows = torch.arange(kv_rows, device=self._device)[:, None]
                hidden, attended = hidden[rows, ends], attended[rows, ends]
                if not ends.shape[1]:
                    return hidden
            if norms_after:
                hidden = hidden + layer.input_norm(layer.o_proj(attended))
                mixed = layer.down(layer.gate_up.gated(hidden, self._options.activation))
                hidden = hidden + layer.post_attention_norm(mixed)
            else:
                hidden = layer.o_proj(attended, hidden)
                gated = layer.gate_up.gated(layer.post_attention_norm(hidden), self._options.activation)
                hidden = layer.down(gated, hidden)
        return self._norm(hidden)

    def _heads(self, layer: _Layer, hidden: Tensor) -> Tensor:
        """Queries, keys and values [R, T, n + 2 h, d] of hidden states [R, T, H]."""
        heads = layer.qkv(hidden).view(*hidden.shape[:2], -1, self._head_dim)
        if layer.head_norm is not None:
            heads[:, :, : -self._kv_heads] = layer.head_norm(heads[:, :, : -self._kv_heads])
        return heads

    def _attention(self, cache: KVCache, kv_rows: int, count: int, bound: int) -> _Attention:
        """Attention of `count` tokens of each of the first rows of `cache`."""
        if cache.lengths.is_cuda and count == 1:
            return self._decode_attention(cache)
        device, dtype = self._device, self._dtype
        positions = cache.lengths[:kv_rows, None] + torch.arange(count, device=device)  # [R, T]
        future = torch.arange(bound, device=device) > positions[:, :, None]
        mask = torch.zeros(future.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(future, -torch.inf)[:, None]  # [R, 1, T, bound]
        rotary = self._rotary_on_gpu(cache) if cache.lengths.is_cuda else self._rotary(positions)

        def attention(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            query = rotary(heads, keys, values)
            return attend(query, keys[:kv_rows, :, :bound], values[:kv_rows, :, :bound], mask)

        return attention

    def _attention_apart(self, cache: KVCache, kv_rows: int, count: int, bound: int) -> _Attention:
        """As `_attention`, of each token as if it were read alone."""
        positions = cache.lengths[:kv_rows, None] + torch.arange(count)
        positions.clamp_(max=cache.keys.shape[3] - 1)
        future = torch.arange(bound) > positions.T[:, :, None]  # [T, R, bound]
        masks = torch.zeros(future.shape).masked_fill_(future, -torch.inf)
        masks = masks.repeat_interleave(self._query_heads, 1)[:, :, None]  # [T, R * heads, 1, bound]
        rotary = self._rotary(positions)

        def attention(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            query = rotary(heads, keys, values)
            return attend_apart(query, keys[:kv_rows, :, :bound], values[:kv_rows, :, :bound], masks)

        return attention

    def _decode_attention(self, cache: KVCache) -> _Attention:
        """Attention of one token of each row on a GPU."""
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        def attention(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            output = kernels.attend(heads[:, 0], keys, values, cache.lengths, self._cos, self._sin)
            return output[:, None]

        return attention

    def _rotary(self, positions: Tensor) -> _Rotary:
        """Rotary embedding of queries and keys at positions [R, T], and the write of keys and values."""
        index = torch.arange(positions.shape[0], device=positions.device)[:, None], positions
        cos, sin = self._cos[positions][:, :, None], self._signed_sin[positions][:, :, None]  # [R, T, 1, d]

        def rotary(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            turned = rotated(heads[:, :, : -self._kv_heads], cos, sin)  # queries and keys
            keys.transpose(1, 2)[index] = turned[:, :, -self._kv_heads :]
            values.transpose(1, 2)[index] = heads[:, :, -self._kv_heads :]
            return turned[:, :, : -self._kv_heads]

        return rotary

    def _rotary_on_gpu(self, cache: KVCache) -> _Rotary:
        """The same, of the tokens that follow those in `cache`."""
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        def rotary(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return kernels.rotary(heads, keys, values, cache.lengths, self._cos, self._sin)

        return rotary


def blocks(positions: int) -> int:
    """Round a number of positions up to whole blocks."""
    return -(-positions // BLOCK) * BLOCK
