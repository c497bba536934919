"""The protocol of a chat format: texts to the token ids with which one model is asked to draw, to judge and to rewrite.

Strings in, lists of ids out. Implementations are thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Chat(Protocol):
    """The format of one model. image_token: the id of a place of an image; end: the id that ends an answer."""

    image_token: int
    end: int

    def tokenize(self, prompt: str) -> list[int]:
        """Ids that ask for an image; the next token is the first of the image. An empty prompt is unconditional.

        Raises BadInput naming `prompt` if it is too long or holds one of the model's control tokens.
        """

    def unconditional(self, ids: Sequence[int]) -> list[int]:
        """Ids of the unconditional branch (classifier-free guidance) for a prompt of these ids."""

    def refuse_marks(self, field: str, text: str) -> None:
        """Raise BadInput naming `field` if `text` holds one of the model's control tokens."""

    def asking(self, question: str, text: str) -> list[int]:
        """Ids that ask about, or for, a `text` that follows the question; the next token is the answer's first.

        Raises as `tokenize` for the text.
        """

    def plain(self, prompt: str) -> list[int]:
        """Ids of the prompt's own text, as it stands in `asking`."""

    def question(self, question: str) -> list[int]:
        """Ids that show an image (as image tokens) and ask about it; the next token is the answer's first."""

    def answer(self, question: str, answer: str) -> int:
        """The first token of `answer` after `question`. Raises BadModel where the format does not separate them."""

    def reply(self, question: str, answer: str) -> int:
        """The first token of `answer` after a question without an image. Raises BadModel as `answer`."""

    def text(self, ids: list[int]) -> str:
        """The text of `ids`, without control tokens and outer white space."""
