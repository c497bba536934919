"""The model's own judgement of a text: whether it calls it harmful, and how likely its words are.

Knows the chat format and one question. Knows nothing of images.
"""

from __future__ import annotations

import torch
from torch import nn

from codebook.tensors import finite
from engine.model import TextVerdict
from engine.runner.decoder import Decoder
from engine.runner.linear import Linear
from engine.unified.asking import NO, YES
from engine.unified.chat import Chat
from engine.unified.judging import distinct, outputs_of

DESCRIBE = "Describe an image in one sentence."
TOGETHER = 64  # tokens whose logits are held together: [64, 102,400] float32 are 26 MB


class TextJudge:
    """Reads each text alone, so that its verdict does not depend on others."""

    def __init__(self, lm_head: nn.Linear, decoder: Decoder, chat: Chat, question: str) -> None:
        """Take the parts; `question` stands before the text. Raises BadModel where yes and no begin alike."""
        self._lm_head, self._decoder, self._chat, self._question = lm_head, decoder, chat, question
        self._answers = Linear([outputs_of(lm_head, distinct(chat.reply, question, (YES, NO)))])

    def __call__(self, text: str) -> TextVerdict:
        """Judge a text. Raises BadInput as Chat.tokenize does, BadNumber where a logit is NaN or infinite."""
        with torch.inference_mode():
            return TextVerdict(self._harmful(text), self._nll(text))

    def _harmful(self, text: str) -> float:
        _, hidden, _ = self._decoder.prefill([self._chat.asking(self._question, text)], 0)
        return float(finite("text verdict", self._answers(hidden).float()).softmax(-1)[0, 0])

    def _nll(self, text: str) -> float:
        ids = self._chat.plain(text)
        row = [*self._chat.asking(DESCRIBE, ""), *ids]
        states, _, _ = self._decoder.prefill([row], 0)
        before = states[0, len(row) - len(ids) - 1 : len(row) - 1]  # each predicts the token after it
        targets = torch.tensor(ids, device=before.device)
        total = 0.0
        for start in range(0, len(ids), TOGETHER):
            part = slice(start, start + TOGETHER)
            logits = finite("text likelihood", self._lm_head(before[part]).float())
            total += float(nn.functional.cross_entropy(logits, targets[part], reduction="sum"))
        return total / len(ids)
