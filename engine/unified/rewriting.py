"""The model's own safe rewrite of prompts, decoded as an edit: likely tokens of the prompt are copied word for word.

Knows no word of harm; the instruction is handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codebook.tensors import finite
from engine.runner.decoder import Decoder
from engine.runner.sampling import gumbel
from engine.unified.chat import Chat

# Probability from which the next token of the prompt is kept: before a replacement, and after one, where little is left
# to change.
KEEP, KEEP_AFTER = 0.004, 1e-5
TEMPERATURE = 0.7  # of the attempts after the first
REACH = 16  # tokens of the prompt that one replacement may stand for


class Edit:
    """One rewrite being written, token by token.

    It follows the prompt while the model finds the prompt's next token likely enough. Where it does not, the model
    writes freely, until its last two tokens stand in the prompt a little further on: there it follows it again.
    """

    def __init__(self, prompt: Sequence[int], end: int) -> None:
        """`end` is the token that ends a text."""
        self._prompt, self._end = prompt, end
        self._next, self._free, self._keep = 0, False, KEEP
        self.written: list[int] = []

    @property
    def next_token(self) -> int:
        """The token of the prompt that would be kept next."""
        return self._prompt[self._next] if self._next < len(self._prompt) else self._end

    @property
    def ended(self) -> bool:
        """Whether the text is complete."""
        return self.written[-1:] == [self._end]

    def is_new(self, probability: float) -> bool:
        """Whether the next token is none of the prompt, given the probability of `next_token`."""
        return not self.ended and (self._free or probability < self._keep)

    def write(self, probability: float, new: int) -> int:
        """Write and return the next token, given the probability of `next_token` and what to write in its place."""
        if self.ended:
            return self._end
        if not self.is_new(probability):
            token = self.next_token
            self._next += 1
        else:
            token, self._free = new, True
            self._follow_again(token)
        self.written.append(token)
        return token

    def _follow_again(self, token: int) -> None:
        pair = [*self.written[-1:], token]
        for position in range(self._next, min(self._next + REACH, len(self._prompt) - 1)):
            if list(self._prompt[position : position + 2]) == pair:
                self._next, self._free, self._keep = position + 2, False, KEEP_AFTER
                return


class Rewriter:
    """Writes rewrites with a model's text head; batch-invariant."""

    def __init__(self, lm_head: nn.Module, decoder: Decoder, chat: Chat, instruction: str, positions: int) -> None:
        """Take the parts; `positions` is the longest row that the decoder reads."""
        self._lm_head, self._decoder, self._chat = lm_head, decoder, chat
        self._instruction, self._positions = instruction, positions

    def __call__(self, prompts: Sequence[str], attempt: int) -> list[str]:
        """Rewrite each prompt, in attempt 0 by the likeliest tokens, in others by sampled ones.

        Raises BadInput for a prompt that cannot be read, BadNumber where logits are NaN.
        """
        if not prompts:
            return []
        rows = [self._chat.asking(self._instruction, prompt) for prompt in prompts]
        seeds = torch.tensor([_seed(prompt, attempt) for prompt in prompts]) if attempt else None
        edits = [Edit(self._chat.plain(prompt), self._chat.end) for prompt in prompts]
        # A rewrite is about as long as its question; a model that does not end is cut off there.
        limits = [max(1, min(len(row) + 16, self._positions - len(row))) for row in rows]
        with torch.inference_mode():
            self._write(rows, edits, max(limits), seeds)
        answers = [edit.written[:limit] for edit, limit in zip(edits, limits, strict=True)]
        return [self._chat.text(answer[:-1] if answer[-1] == self._chat.end else answer) for answer in answers]

    def _write(self, rows: list[list[int]], edits: list[Edit], limit: int, seeds: Tensor | None) -> None:
        """Read rows of ids and write up to `limit` tokens after each, until all have ended.

        seeds: int64 [R], of each row's sampling; None takes the likeliest tokens.
        """
        _, hidden, cache = self._decoder.prefill(rows, limit)
        for step in range(limit):
            softmax = finite("rewrite", self._lm_head(hidden).float().softmax(-1))
            next_tokens = torch.tensor([edit.next_token for edit in edits], device=softmax.device)
            probabilities = softmax.gather(1, next_tokens[:, None])[:, 0].tolist()
            new = softmax.argmax(-1)
            if seeds is not None:
                free = [row for row, edit in enumerate(edits) if edit.is_new(probabilities[row])]
                new[free] = _sampled(softmax[free], seeds[free], step)
            choices = zip(edits, probabilities, new.tolist(), strict=True)
            token = torch.tensor([[edit.write(p, other)] for edit, p, other in choices], device=softmax.device)
            if all(edit.ended for edit in edits):
                break
            hidden = self._decoder.extend(self._decoder.embed(token), cache)[:, -1]


def _sampled(probabilities: Tensor, seeds: Tensor, step: int) -> Tensor:
    """One token a row [R] of probabilities [R, V] at TEMPERATURE, by Gumbel-max sampling."""
    device = probabilities.device
    noise = gumbel(seeds.to(device), torch.full_like(seeds, step, device=device), probabilities.shape[1])
    return (probabilities.log() / TEMPERATURE + noise).argmax(-1)


def _seed(prompt: str, attempt: int) -> int:
    """The seed of a row's sampling: no other row changes it."""
    text = f"{attempt} {prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
