"""The token loop: prompts to image tokens under guidance, and the same path teacher-forced.

Features here are what the output table multiplies: the input of the image head's last layer. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusModel

from codebook.value import NO_EXPERT, OutputEdit
from engine.language import LanguageStack
from engine.model import ImageRequest
from engine.prompting import Chat
from engine.sampling import choose

# An edit, its expert, and the int64 rows it applies to, from the first token to the last.
Routed = list[tuple[OutputEdit, int, Tensor]]


class Drawer:
    """Draws image tokens with a transformers JanusModel's language model and image head."""

    def __init__(self, janus: JanusModel, language: LanguageStack, chat: Chat, tokens: int) -> None:
        """Take the parts; `tokens` is N, the tokens of an image."""
        self._language, self._chat, self._tokens = language, chat, tokens
        self._head = janus.generation_head
        with torch.no_grad():
            # What the language model reads for each code, [K, H]: no codebook version edits it, so once is enough.
            self._codes: Tensor = janus.generation_aligner(janus.generation_embeddings.weight)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None) -> Tensor:
        """Sample [B, N] int64 tokens. Raises BadInput for a prompt that cannot be read."""
        # Made outside inference mode, so that autograd may later index with it.
        tokens = torch.zeros(len(requests), self._tokens, dtype=torch.int64, device=self._codes.device)
        if requests:
            with torch.inference_mode():
                self._fill(tokens, requests, on_step)
        return tokens

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """Teacher-forced features [B, N, M] float32 of tokens [B, N] under the prompts."""
        tokens = tokens.to(self._codes.device)
        with torch.no_grad():
            states, context = self._language.begin([self._chat.drawing(p) for p in prompts], self._tokens - 1)
            rest = self._language.read(self._codes[tokens[:, :-1]], context)
            return self._features(torch.cat([states[:, -1:], rest], 1))

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, T, H] float32 of the prompts and bool [B, T], False at padding."""
        with torch.no_grad():
            states, context = self._language.begin([self._chat.drawing(p) for p in prompts], 0)
            return states.float(), context.visible

    def head(self, features: Tensor) -> Tensor:
        """Features [.., M] -> logits [.., K] float32; differentiable in `features`."""
        table = self._head.vision_head
        return F.linear(features.to(table.weight), table.weight, table.bias).float()

    def _fill(self, tokens: Tensor, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None) -> None:
        samplings = [request.sampling for request in requests]
        # The conditional rows come first, then one unconditional row for each image that is guided.
        guided = [b for b, sampling in enumerate(samplings) if sampling.guidance != 1.0]
        scales = torch.tensor([samplings[b].guidance for b in guided], device=tokens.device)[:, None]
        rows = torch.tensor([*range(len(requests)), *guided], device=tokens.device)
        prompts = [self._chat.drawing(request.prompt) for request in requests]
        prompts += [self._chat.unconditional(prompts[b]) for b in guided]
        states, context = self._language.begin(prompts, self._tokens - 1)
        routed = route(requests, states, context.visible[:, : states.shape[1]])
        hidden = states[:, -1]
        for step in range(self._tokens):
            logits = self._guide(hidden, routed, guided, scales)
            tokens[:, step] = choose(logits, samplings, step)
            if on_step is not None:
                on_step(step)
            if step + 1 < self._tokens:
                drawn = self._codes[tokens[rows, step]]
                hidden = self._language.read(drawn[:, None], context)[:, -1]

    def _guide(self, hidden: Tensor, routed: Routed, guided: list[int], scales: Tensor) -> Tensor:
        """Hidden states [B + guided, H] -> logits [B, K]: unconditional + scale * (conditional - unconditional)."""
        features = self._features(hidden)
        for edit, expert, rows in routed:
            features[rows] = edit.apply(features[rows], expert)
        logits = self.head(features)
        for edit, expert, rows in routed:
            if edit.bias is not None:
                logits[rows] += edit.bias[expert].to(logits)
        count = logits.shape[0] - len(guided)
        conditional, unconditional = logits[:count], logits[count:]
        if guided:
            conditional[guided] = unconditional + scales * (conditional[guided] - unconditional)
        return conditional

    def _features(self, hidden: Tensor) -> Tensor:
        """Hidden states [.., H] -> features [.., M] float32."""
        features: Tensor = self._head.activation_fn(self._head.proj_out(hidden)).float()
        return features


def route(requests: Sequence[ImageRequest], states: Tensor, seen: Tensor) -> Routed:
    """Decide once an image which expert of its version's output edit applies, if any; conditional rows only.

    states [B or more, T, H], seen bool [B or more, T]: row b is the prompt of requests[b], as in Router.scores.
    """
    groups: dict[int, tuple[OutputEdit, list[int]]] = {}
    for b, request in enumerate(requests):
        if request.codebook.output is not None:
            groups.setdefault(id(request.codebook.output), (request.codebook.output, []))[1].append(b)
    routed: Routed = []
    for edit, members in groups.values():
        rows = torch.tensor(members, device=states.device)
        chosen = edit.choose(states[rows], seen[rows])
        for expert in sorted(set(chosen.tolist())):
            if expert != NO_EXPERT:
                routed.append((edit, expert, rows[chosen == expert]))
    return routed
