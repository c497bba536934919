"""The language model as an image generator: prompt prefill, logits under edits, and the teacher-forced features.

Features are what the output table multiplies: the input of the image head's last layer. Knows nothing of pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebook.value import HeadEdit
from engine.model import ImageRequest, PromptTokenizer
from engine.runner.decoder import BLOCK, PIECE, Decoder, KVCache
from engine.runner.linear import MAX_ROWS, Linear
from engine.runner.native.choice import choose_native
from engine.runner.products.choice import choose_products
from engine.runner.script import Script
from engine.runner.sequence import ImageSequence

# An edit, its expert, and the int64 rows it applies to, in the order in which they apply.
Routed = Sequence[tuple[HeadEdit, int, Tensor]]

EDIT_ROWS = 16  # rows are edited in groups of this size, so that a row's last bits do not depend on their number
GPU_BUCKET = 4 * BLOCK  # on a GPU prompts are read together whose lengths are equal in this unit
CACHED_UNCONDITIONAL = 16  # unconditional prompts whose KV rows are cached

# The codes of one step in R rows, drawn one after the other: from the code [R] drawn last, None at first, to the
# features [R, M] of the next one.
DepthStep = Callable[[Tensor | None], Tensor]


class DepthHead(Protocol):
    """Head of a model that draws several codes a step, each given those before it; batch-invariant."""

    def begin(self, hidden: Tensor) -> DepthStep:
        """Begin a step after the hidden states [R, H]."""

    def read(self, tokens: Tensor) -> Tensor:
        """Return what the language model reads after a step, [.., H], of its tokens [.., depth]."""


@dataclass(frozen=True)
class ImageHead:
    """The modules through which image tokens enter and leave a language model; a family hands them in.

    table: M -> K, the output table; code_embeddings: [K + G, H], what the language model reads for each code, and for
    the given tokens of its script; projection: H -> M, and activation, of its outputs, which gives the features: where
    there is none, hidden states are the features. depth: of a model that draws several codes a step; it reads
    code_embeddings [K, D], and there is no projection.
    """

    table: nn.Linear
    code_embeddings: Tensor
    projection: nn.Linear | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    depth: DepthHead | None = None


@dataclass(frozen=True)
class PrefillResult:
    """A prompt of `length` tokens that has been read: row `row` of `cache`, and the last hidden state [H] of it."""

    cache: KVCache
    row: int
    hidden: Tensor
    length: int


class ImageLM:
    """A decoder with an image head."""

    def __init__(self, head: ImageHead, decoder: Decoder, prompts: PromptTokenizer, script: Script) -> None:
        """Take the parts."""
        self.decoder, self.script, self.tokens = decoder, script, script.tokens
        self.width: int = head.table.in_features  # M
        self.codes, self.depth = head.code_embeddings, head.depth
        self._prompts, self._table = prompts, head.table
        self._output = Linear([head.table])
        self._projection = None if head.projection is None else Linear([head.projection])
        self._activation = head.activation
        # By its ids; the most recently used comes last.
        self._unconditional: OrderedDict[tuple[int, ...], PrefillResult] = OrderedDict()

    def warm(self, kv_rows: int) -> None:
        """Warm up the linear layers for reading any number of tokens, and for sampling in up to `kv_rows` rows."""
        self.decoder.warm()
        if self._projection is not None:
            self._projection.warm(kv_rows)
        self._output.warm(kv_rows)

    def choose_products(self, memory: Path | None) -> None:
        """Choose the fastest products and forward pass on this processor; `memory` is a file of choices, if any."""
        projection = [] if self._projection is None else [self._projection]
        choose_products([*self.decoder.linears, *projection, self._output], memory)
        choose_native(self.decoder, memory)

    def prefill(self, sequences: Sequence[ImageSequence]) -> list[tuple[PrefillResult, PrefillResult | None]]:
        """Read the prompts, each with its unconditional one where it is guided, and route each image to its experts.

        Prompts of equally many blocks are read together, so that the shapes follow from each prompt alone. On a GPU,
        where padding changes no bit of a row, the unit is larger, and no more are read than our kernels take.
        """
        on_gpu = self.codes.is_cuda
        unit = GPU_BUCKET if on_gpu else BLOCK
        buckets: dict[int, list[ImageSequence]] = {}
        for sequence in sequences:
            buckets.setdefault(-(-len(sequence.prompt_ids) // unit), []).append(sequence)
        conditional: dict[ImageSequence, PrefillResult] = {}
        for length, members in buckets.items():
            limit = MAX_ROWS // (length * unit) if on_gpu else len(members)
            for first in range(0, len(members), limit):
                group = members[first : first + limit]
                conditional |= zip(group, self._prefill_group(group), strict=True)
        return [
            (conditional[each], self._unconditional_of(each) if each.request.sampling.guidance != 1.0 else None)
            for each in sequences
        ]

    def prompt_length(self, ids: Sequence[int]) -> int:
        """Positions that a prompt of these ids, or its unconditional one, takes at most."""
        return max(len(ids), len(self._prompts.unconditional(ids)))

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """Teacher-forced features [B, n, M] float32 of images' first tokens [B, n] under the prompts."""
        tokens = tokens.to(self.codes.device)
        with torch.no_grad():
            prompt_ids = [self._prompts.tokenize(p) for p in prompts]
            _, last, cache = self.decoder.prefill(prompt_ids, self.script.steps - 1)
            if self.depth is not None:
                return self._deep_features(self.depth, last, cache, tokens)
            if self.script.is_plain:
                rest = self.decoder.extend(self.codes[tokens[:, :-1]], cache)
                return self.head_input(torch.cat([last[:, None], rest], 1)).float()
            return self._scripted_features(last, cache, tokens)

    def _scripted_features(self, last: Tensor, cache: KVCache, tokens: Tensor) -> Tensor:
        """The features of the steps that draw a code, among given tokens."""
        steps = self.script.steps_of(tokens.shape[1])
        codes = self.codes.shape[0] - self.script.kinds
        read = torch.tensor([codes + (given or 0) for given in self.script.given[: steps[-1]]], device=tokens.device)
        read = read.expand(tokens.shape[0], -1).clone()
        drawn = torch.tensor(steps[:-1], device=tokens.device)
        read[:, drawn] = tokens[:, :-1]
        states = torch.cat([last[:, None], self.decoder.extend(self.codes[read], cache)], 1)
        hidden = states[:, torch.tensor(steps, device=tokens.device)]
        return self.head_input(hidden).float()

    def _deep_features(self, head: DepthHead, last: Tensor, cache: KVCache, tokens: Tensor) -> Tensor:
        """The features of tokens drawn several a step."""
        (images, count), depth = tokens.shape, self.script.depth
        cells = F.pad(tokens, (0, -count % depth)).view(images, -1, depth)
        hidden = last[:, None]
        if cells.shape[1] > 1:
            hidden = torch.cat([hidden, self.decoder.extend(head.read(cells[:, :-1]), cache)], 1)
        features = []
        parts = zip(*(torch.split(all_.flatten(0, 1), PIECE) for all_ in (hidden, cells)), strict=True)
        for states, drawn in parts:
            step, codes = head.begin(states), [None, *drawn.unbind(1)[:-1]]
            features.append(torch.stack([step(code) for code in codes], 1).float())
        return torch.cat(features).view(images, cells.shape[1] * depth, -1)[:, :count]

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, T, H] float32 of the prompts and bool [B, T], False at padding."""
        with torch.no_grad():
            states, _, cache = self.decoder.prefill([self._prompts.tokenize(p) for p in prompts], 0)
            return states.float(), _mask(states, cache)

    def head(self, features: Tensor) -> Tensor:
        """Features [.., M] -> logits [.., K] float32; differentiable in `features`."""
        return F.linear(features.to(self._table.weight), self._table.weight, self._table.bias).float()

    def logits(self, features: Tensor, routed: Routed) -> Tensor:
        """Features [R, M] float32 -> logits [R, K] float32, both edited where `routed` says."""
        for edit, expert, rows in routed:
            features[rows] = _edited(edit, expert, features[rows])
        logits = self._output(features.to(self._table.weight)).float()
        for edit, expert, rows in routed:
            if edit.bias is not None:
                logits[rows] += edit.bias[expert].to(logits)
        return logits

    def head_input(self, hidden: Tensor) -> Tensor:
        """Hidden states [.., H] -> features [.., M], in the model's dtype."""
        projected = hidden if self._projection is None else self._projection(hidden)
        return projected if self._activation is None else self._activation(projected)

    def _prefill_group(self, sequences: Sequence[ImageSequence]) -> list[PrefillResult]:
        states, last, cache = self.decoder.prefill([sequence.prompt_ids for sequence in sequences], 0)
        experts = route([sequence.request for sequence in sequences], states, _mask(states, cache))
        for sequence, chosen in zip(sequences, experts, strict=True):
            sequence.experts = chosen
        lengths = [len(sequence.prompt_ids) for sequence in sequences]
        return [PrefillResult(cache, row, hidden, lengths[row]) for row, hidden in enumerate(last)]

    def _unconditional_of(self, sequence: ImageSequence) -> PrefillResult:
        cached, ids = self._unconditional, tuple(self._prompts.unconditional(sequence.prompt_ids))
        if ids not in cached:
            _, last, cache = self.decoder.prefill([ids], 0)
            cached[ids] = PrefillResult(cache, 0, last[0], len(ids))
            if len(cached) > CACHED_UNCONDITIONAL:
                cached.popitem(last=False)
        cached.move_to_end(ids)
        return cached[ids]


def route(requests: Sequence[ImageRequest], states: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """The experts of each image's HeadEdit, by its prompt, in the order in which they apply.

    states [B, T, H], mask bool [B, T]: row b is the prompt of requests[b], as in Router.scores.
    """
    experts: list[tuple[int, ...]] = [()] * len(requests)
    for b, request in enumerate(requests):
        if request.codebook.output is not None:
            (experts[b],) = request.codebook.output.experts(states[b : b + 1], mask[b : b + 1])
    return experts


def _mask(states: Tensor, cache: KVCache) -> Tensor:
    """Bool [B, T], False where a row of states [B, T, H] is padding."""
    return torch.arange(states.shape[1], device=states.device) < cache.lengths[:, None]


def _edited(edit: HeadEdit, expert: int, features: Tensor) -> Tensor:
    count = features.shape[0]
    padded = F.pad(features, (0, 0, 0, -count % EDIT_ROWS))
    return torch.cat([edit.apply(part, expert) for part in torch.split(padded, EDIT_ROWS)])[:count]
