"""The model's own safe rewrite of prompts: plain greedy text. Knows no word of harm; the instruction is handed in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from engine.language import LanguageStack
from engine.prompting import Chat


class Rewriter:
    """Writes answers with a Janus model's text head. A row's answer is the same in any batch."""

    def __init__(
        self, lm_head: nn.Module, language: LanguageStack, chat: Chat, instruction: str, positions: int
    ) -> None:
        """Take the parts; `positions` is the longest row the language stack reads."""
        self._lm_head, self._language, self._chat = lm_head, language, chat
        self._instruction, self._positions = instruction, positions

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Rewrite each prompt; raises BadInput for one that cannot be read."""
        if not prompts:
            return []
        rows = [self._chat.rewriting(self._instruction, prompt) for prompt in prompts]
        # A rewrite is about as long as its question; a model that does not end is cut off there.
        limits = [min(len(row) + 16, self._positions - len(row)) for row in rows]
        with torch.inference_mode():
            answers = self._write(rows, max(limits))
        return [self._chat.text(self._cut(answer[:limit])) for answer, limit in zip(answers, limits, strict=True)]

    def _write(self, rows: list[list[int]], limit: int) -> list[list[int]]:
        """Read rows of ids and write up to `limit` tokens after each, until all have ended."""
        states, context = self._language.begin(rows, limit)
        hidden = states[:, -1]
        written = torch.zeros(len(rows), 0, dtype=torch.int64, device=hidden.device)
        for _ in range(limit):
            token = self._lm_head(hidden).argmax(-1, keepdim=True)
            written = torch.cat([written, token], 1)
            if (written == self._chat.end).any(1).all():
                break
            hidden = self._language.read(self._language.embed(token), context)[:, -1]
        answers: list[list[int]] = written.tolist()
        return answers

    def _cut(self, answer: list[int]) -> list[int]:
        return answer[: answer.index(self._chat.end)] if self._chat.end in answer else answer
