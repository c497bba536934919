"""Questions about images, one an image, answered yes or no: P(yes) from the first token of a model's answer.

Knows the chat format. Knows nothing of harm: the judge's own phrasings are in judging.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from codebook.tensors import finite
from core.errors import BadInput
from engine.runner.decoder import Decoder
from engine.runner.linear import Linear
from engine.unified.chat import Chat
from engine.unified.judging import distinct, outputs_of

YES, NO = "yes", "no"
TOGETHER = 4  # images read together: more would take more memory, and no less time


class Asker:
    """Reads an image and its question as one row. A row's answer is the same in any batch."""

    def __init__(
        self, lm_head: nn.Linear, decoder: Decoder, chat: Chat, embed_images: Callable[[Tensor], Tensor], positions: int
    ) -> None:
        """Take the parts.

        embed_images: images [B, 3, H, W] in [-1, 1] -> their embeddings [B, image tokens, H];
        positions: the longest row the decoder reads.
        """
        self._lm_head, self._decoder, self._chat = lm_head, decoder, chat
        self._embed_images = embed_images
        self._positions = positions
        self._head: Linear | None = None  # of yes and no

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """P(yes) [B] float32 on the CPU, against P(no), of one question an image.

        Raises BadInput for another number of questions and for a question that is too long or holds a control token,
        BadModel where yes and no begin with the same token, BadNumber where a logit is NaN or infinite.
        """
        if len(questions) != images.shape[0]:
            raise BadInput("questions", len(questions), f"one for each of {images.shape[0]} images")
        rows = [self._row(question) for question in questions]
        answers = [torch.zeros(0)]
        with torch.inference_mode():
            for start in range(0, len(rows), TOGETHER):
                part = slice(start, start + TOGETHER)
                answers.append(self._ask(images[part], rows[part]))
        return torch.cat(answers)

    def _answers(self) -> Linear:
        """Of the text head the outputs of yes and no; made when first needed, since a model may serve that has none."""
        if self._head is None:
            tokens = distinct(self._chat.answer, "Is this an image?", (YES, NO))
            self._head = Linear([outputs_of(self._lm_head, tokens)])
        return self._head

    def _row(self, question: str) -> list[int]:
        self._chat.refuse_marks("question", question)
        row = self._chat.question(question)
        if len(row) > self._positions:
            allowed = f"at most {self._positions} tokens with its image and chat format; this is {len(row)}"
            raise BadInput("question", question if len(question) < 80 else question[:77] + "...", allowed)
        return row

    def _ask(self, images: Tensor, rows: list[list[int]]) -> Tensor:
        # Padded on the right: the answer is read at each row's own end, which sees nothing after it.
        width, device = max(map(len, rows)), self._lm_head.weight.device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        read = self._decoder.embed(ids).clone()
        embedded = self._embed_images(images)
        read[ids == self._chat.image_token] = embedded.flatten(0, 1).to(read.dtype)
        hidden = self._decoder.extend(read, self._decoder.new_cache(len(rows), width))
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        logits = self._answers()(hidden[torch.arange(len(rows), device=device), ends]).float()
        return finite("answer", logits).softmax(1)[:, 0].cpu()
