"""What drawing an image needs of a model: its prompt read, logits under guidance, and the same path teacher-forced.

Features here are what the output table multiplies: the input of the image head's last layer. Knows nothing of pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusModel

from codebook.value import NO_EXPERT, HeadEdit
from engine.model import ImageRequest, PromptTokenizer
from engine.runner.decoder import BLOCK, Decoder, KVCache
from engine.runner.linear import MOST, Linear

# An edit, its expert, and the int64 rows it applies to.
Routed = Sequence[tuple[HeadEdit, int, Tensor]]

# Rows are edited this many at a time, so that a row's last bits do not depend on how many are.
EDITED_TOGETHER = 16
ALIKE = 4 * BLOCK  # on a GPU prompts are read together that are as long in this unit
TWINS = 16  # unconditional prompts that are kept


@dataclass(frozen=True)
class PrefillResult:
    """A prompt that has been read: row `row` of `context`, and the last hidden state [H], from which drawing goes on.

    length: in tokens; expert: the expert of the request's output edit that applies to the image, or NO_EXPERT.
    """

    context: KVCache
    row: int
    length: int
    hidden: Tensor
    expert: int = NO_EXPERT


class ImageLM:
    """A transformers JanusModel's language model and image head."""

    def __init__(self, janus: JanusModel, language: Decoder, chat: PromptTokenizer, tokens: int) -> None:
        """Take the parts; `tokens` is N, the tokens of an image."""
        self.language, self.tokens = language, tokens
        self.width: int = janus.generation_head.vision_head.in_features  # M
        self._chat, self._table = chat, janus.generation_head.vision_head
        self._output, self._project = Linear([self._table]), Linear([janus.generation_head.proj_out])
        self._activate: Callable[[Tensor], Tensor] = janus.generation_head.activation_fn
        # By length: an unconditional prompt says nothing but how long it is. The one last used comes last.
        self._unconditional: OrderedDict[int, PrefillResult] = OrderedDict()
        with torch.no_grad():
            # What the language model reads for each code, [K, H]: no codebook version edits it, so once is enough.
            self.codes: Tensor = janus.generation_aligner(janus.generation_embeddings.weight)

    def warm(self, rows: int) -> None:
        """Prepare for reading any number of tokens, and for drawing in up to so many rows."""
        self.language.warm()
        self._project.warm(rows)
        self._output.warm(rows)

    def prefill(self, requests: Sequence[ImageRequest]) -> list[tuple[PrefillResult, PrefillResult | None]]:
        """Read the prompts: each with its unconditional twin, where it is guided. Raises BadInput for a bad one.

        Prompts of as many blocks are read together, so that the shapes follow from each prompt alone; on a GPU, where
        padding changes no bit of a row, of about as many, and no more than our products take.
        """
        ids = [self._chat.drawing(request.prompt) for request in requests]
        buckets: dict[int, list[int]] = {}
        on_gpu = self.codes.is_cuda
        alike = ALIKE if on_gpu else BLOCK
        for b, row in enumerate(ids):
            buckets.setdefault(-(-len(row) // alike), []).append(b)
        read: dict[int, PrefillResult] = {}
        for length, members in buckets.items():
            together = MOST // (length * alike) if on_gpu else len(members)
            for first in range(0, len(members), together):
                some = members[first : first + together]
                read |= zip(some, self._read([requests[b] for b in some], [ids[b] for b in some]), strict=True)
        return [
            (read[b], self._twin(ids[b]) if request.sampling.guidance != 1.0 else None)
            for b, request in enumerate(requests)
        ]

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """Teacher-forced features [B, n, M] float32 of images' first tokens [B, n] under the prompts."""
        tokens = tokens.to(self.codes.device)
        with torch.no_grad():
            _, last, context = self.language.begin([self._chat.drawing(p) for p in prompts], self.tokens - 1)
            rest = self.language.read(self.codes[tokens[:, :-1]], context)
            return self.read_off(torch.cat([last[:, None], rest], 1)).float()

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, T, H] float32 of the prompts and bool [B, T], False at padding."""
        with torch.no_grad():
            states, _, context = self.language.begin([self._chat.drawing(p) for p in prompts], 0)
            return states.float(), _seen(states, context)

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

    def read_off(self, hidden: Tensor) -> Tensor:
        """Hidden states [.., H] -> features [.., M], as the model holds its numbers."""
        return self._activate(self._project(hidden))

    def _read(self, requests: Sequence[ImageRequest], ids: Sequence[Sequence[int]]) -> list[PrefillResult]:
        states, last, context = self.language.begin(ids, 0)
        experts = route(requests, states, _seen(states, context))
        return [PrefillResult(context, row, len(ids[row]), hidden, experts[row]) for row, hidden in enumerate(last)]

    def _twin(self, ids: list[int]) -> PrefillResult:
        known = self._unconditional
        if len(ids) not in known:
            _, last, context = self.language.begin([self._chat.unconditional(ids)], 0)
            known[len(ids)] = PrefillResult(context, 0, len(ids), last[0])
            if len(known) > TWINS:
                known.popitem(last=False)
        known.move_to_end(len(ids))
        return known[len(ids)]


def route(requests: Sequence[ImageRequest], states: Tensor, seen: Tensor) -> list[int]:
    """Decide for each image, once, which expert of its version's output edit applies, or NO_EXPERT.

    states [B, T, H], seen bool [B, T]: row b is the prompt of requests[b], as in Router.scores.
    """
    experts = [NO_EXPERT] * len(requests)
    for b, request in enumerate(requests):
        if request.codebook.output is not None:
            experts[b] = int(request.codebook.output.choose(states[b : b + 1], seen[b : b + 1]))
    return experts


def _seen(states: Tensor, context: KVCache) -> Tensor:
    """Bool [B, T], False where a row of states [B, T, H] is padding."""
    return torch.arange(states.shape[1], device=states.device) < context.lengths[:, None]


def _edited(edit: HeadEdit, expert: int, features: Tensor) -> Tensor:
    count = features.shape[0]
    padded = F.pad(features, (0, 0, 0, -count % EDITED_TOGETHER))
    return torch.cat([edit.apply(part, expert) for part in torch.split(padded, EDITED_TOGETHER)])[:count]
