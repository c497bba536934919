"""The Llama stack of a model, read step by step: rows of unequal length over preallocated keys and values.

One code path reads prompts, single tokens and whole teacher-forced images. What a row reads depends on that row alone:
on the CPU bit for bit, whoever its batch mates are. Knows no images and no chat format.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from engine.runner.linear import Linear, Norm

# Of heads [R, T, n + 2 h, d], queries, keys and values, and a layer's keys and values, into which theirs are written:
_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # what the queries see [R, T, n d]
_Turn = Callable[[Tensor, Tensor, Tensor], Tensor]  # the turned queries [R, T, n, d]

BLOCK = 16  # attention reads this many places at a time: with whole blocks a row's sums do not depend on their number


@dataclass
class KVCache:
    """What R rows have read so far; `Decoder.read` extends it in place.

    keys, values: [layers, R, heads, S, d]; lengths: [R] int64, how many of its S places each row has read.
    longest: at least the largest of the lengths, known without asking the device.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int = 0

    def fork(self, times: int, room: int) -> KVCache:
        """Return a context of R * times rows, row r `times` times in a row, with `room` free places."""
        places = blocks(self.longest + room)

        def widen(cache: Tensor) -> Tensor:
            layers, rows, heads, _, width = cache.shape
            wide = cache.new_empty(layers, rows, times, heads, places, width)
            wide[:, :, :, :, : self.longest] = cache[:, :, None, :, : self.longest]
            wide[:, :, :, :, self.longest :] = 0.0  # what is masked must be a number all the same
            return wide.flatten(1, 2)

        lengths = self.lengths.repeat_interleave(times, 0)
        return KVCache(widen(self.keys), widen(self.values), lengths, self.longest)

    def grow(self, rows: int, count: int) -> None:
        """Note that the first rows have read `count` tokens more."""
        self.lengths[:rows] += count
        self.longest += count

    def put(self, row: int, other: KVCache, its: int) -> None:
        """Make row `row` what row `its` of `other` is; both may be the same context."""
        places = other.longest
        self.keys[:, row, :, :places] = other.keys[:, its, :, :places]
        self.values[:, row, :, :places] = other.values[:, its, :, :places]
        self.lengths[row] = other.lengths[its]
        self.longest = max(self.longest, places)


class _Layer:
    """One decoder layer's weights, fused: query, key and value in one product, gate and up in another."""

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, layer.post_attention_layernorm
        self.before, self.between = (Norm(norm.weight, norm.variance_epsilon) for norm in norms)
        self.attend = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.project = Linear([attention.o_proj])
        self.widen = Linear([mlp.gate_proj, mlp.up_proj])
        self.narrow = Linear([mlp.down_proj])


class Decoder:
    """Reads embeddings with the weights of a transformers LlamaModel. Holds no state: many threads may read at once."""

    def __init__(self, llama: LlamaModel, positions: int) -> None:
        """Take the layers out of `llama`, which is left without; `positions` is the longest row to read, in tokens."""
        layers = cast(list[LlamaDecoderLayer], llama.layers)
        attention = layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._heads: int = attention.k_proj.out_features // self._head_dim  # of keys and values
        self._embed, self._norm = llama.embed_tokens, Norm(llama.norm.weight, llama.norm.variance_epsilon)
        self.width: int = self._norm.gain.shape[0]  # H
        places = torch.arange(blocks(positions), device=self._norm.gain.device)[None]
        with torch.no_grad():
            cos, sin = llama.rotary_emb(self._norm.gain, places)
            self._layers = []
            while len(layers):  # one by one, so that no more than one layer is there twice
                self._layers.append(_Layer(layers[0]))
                del layers[0]
        self._cos, self._sin = cos[0], sin[0]  # [positions, d]

    def warm(self) -> None:
        """Prepare for reading any number of tokens."""
        layer = self._layers[0]  # the others have products of the same shapes
        for linear in (layer.attend, layer.project, layer.widen, layer.narrow):
            linear.warm(sys.maxsize)

    def row_bytes(self, places: int) -> int:
        """Bytes of a context's row of `places` places."""
        numbers = 2 * len(self._layers) * self._heads * blocks(places) * self._head_dim
        return numbers * self._norm.gain.element_size()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [..] -> embeddings [.., H]."""
        embedded: Tensor = self._embed(ids)
        return embedded

    def context(self, rows: int, places: int) -> KVCache:
        """Return an empty context of `rows` rows with at least `places` places each."""
        shape = (len(self._layers), rows, self._heads, blocks(places), self._head_dim)
        lengths = torch.zeros(rows, dtype=torch.int64, device=self._norm.gain.device)
        return KVCache(self._norm.gain.new_zeros(shape), self._norm.gain.new_zeros(shape), lengths)

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> tuple[Tensor, Tensor, KVCache]:
        """Read token rows of unequal length into a new context with `room` more places.

        Returns the states [R, T, H], the rows padded on the right to whole blocks, the states [R, H] of each row's last
        token, and the context.
        """
        lengths = [len(row) for row in rows]
        width, device = blocks(max(lengths)), self._norm.gain.device
        ids = torch.tensor([[*row, *itertools.repeat(0, width - len(row))] for row in rows], device=device)
        context = self.context(len(rows), width + room)
        states = self.read(self.embed(ids), context)
        context.lengths, context.longest = torch.tensor(lengths, device=device), max(lengths)
        return states, states[torch.arange(len(rows), device=device), context.lengths - 1], context

    def read(self, embeddings: Tensor, context: KVCache) -> Tensor:
        """Read T more embeddings [R, T, H] into the first R rows of `context`; return their last hidden states.

        A row that is padded on the right reads its padding too, to no effect on the tokens before: whoever pads sets
        `context.lengths` back, and what is read next takes the places of the padding.
        """
        rows, count = embeddings.shape[:2]
        hidden = self.layers(embeddings, context, blocks(context.longest + count))
        context.grow(rows, count)
        return hidden

    def layers(self, embeddings: Tensor, context: KVCache, bound: int) -> Tensor:
        """As `read`, but leaves the lengths of `context` as they are; rows attend to their first `bound` places.

        Shapes and addresses are all it takes from the host, so that it can be recorded.
        """
        rows, count = embeddings.shape[:2]
        attend = self._attending(context, rows, count, bound)
        hidden = embeddings
        for layer, keys, values in zip(self._layers, context.keys, context.values, strict=True):
            heads = layer.attend(layer.before(hidden)).view(rows, count, -1, self._head_dim)
            hidden = layer.project(attend(heads, keys, values), hidden)
            hidden = layer.narrow(layer.widen.gated(layer.between(hidden)), hidden)
        return self._norm(hidden)

    def _attending(self, context: KVCache, rows: int, count: int, bound: int) -> _Attend:
        """How `count` tokens of each of the first rows of `context` attend."""
        if context.lengths.is_cuda and count == 1:
            return self._attending_one(context)
        device, dtype = self._norm.gain.device, self._norm.gain.dtype
        places = context.lengths[:rows, None] + torch.arange(count, device=device)  # [R, T]
        unseen = torch.arange(bound, device=device) > places[:, :, None]
        mask = torch.zeros(unseen.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(unseen, -torch.inf)[:, None]  # [R, 1, T, bound]
        turn = self._turning_on_gpu(context) if context.lengths.is_cuda else self._turning(places)

        def attend(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            query = turn(heads, keys, values)
            return _attention(query, keys[:rows, :, :bound], values[:rows, :, :bound], mask)

        return attend

    def _attending_one(self, context: KVCache) -> _Attend:
        """How one token of each row attends on a GPU."""
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        def attend(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            seen = kernels.attend(heads[:, 0], keys, values, context.lengths, self._cos, self._sin)
            return seen[:, None]

        return attend

    def _turning(self, places: Tensor) -> _Turn:
        """How queries and keys at places [R, T] are turned, and keys and values kept."""
        where = torch.arange(places.shape[0], device=places.device)[:, None], places
        cos, sin = self._cos[places][:, :, None], self._sin[places][:, :, None]  # [R, T, 1, d]

        def turn(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            turned = _turned(heads[:, :, : -self._heads], cos, sin)  # queries and keys
            keys.transpose(1, 2)[where] = turned[:, :, -self._heads :]
            values.transpose(1, 2)[where] = heads[:, :, -self._heads :]
            return turned[:, :, : -self._heads]

        return turn

    def _turning_on_gpu(self, context: KVCache) -> _Turn:
        """The same, of the tokens that follow what the rows of `context` have read."""
        from engine.runner import kernels  # needs triton, which comes with torch for a GPU

        def turn(heads: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return kernels.turn(heads, keys, values, context.lengths, self._cos, self._sin)

        return turn


def blocks(places: int) -> int:
    """The smallest number of whole blocks that holds `places`, in places."""
    return -(-places // BLOCK) * BLOCK


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, the halves convention: heads [R, T, heads, d], cos and sin [R, T, 1, d]."""
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend: query [R, T, heads, d], keys and values [R, key heads, S, d], mask [R, 1, T, S] -> [R, T, heads * d]."""
    heads, groups = query.shape[2], query.shape[2] // keys.shape[1]
    query = query.transpose(1, 2)
    if query.is_cuda:
        seen = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=groups > 1)
    else:
        # Spelt out, and in float32: the fused CPU kernel gives a row other last bits among other batch mates, and
        # products in bfloat16 among other numbers of places.
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        masks = mask.float().expand(-1, heads, -1, -1).flatten(0, 1)
        scale = query.shape[-1] ** -0.5
        scores = torch.baddbmm(masks, query.float().flatten(0, 1), keys.float().flatten(0, 1).mT, alpha=scale)
        seen = (scores.softmax(-1) @ values.float().flatten(0, 1)).view(query.shape).to(query.dtype)
    return seen.transpose(1, 2).flatten(2)
