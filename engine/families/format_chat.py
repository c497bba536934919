"""Chat format of models whose prompts are plain strings around a text: what Janus says by a template others fix.

Strings in, lists of ids out; no tensors. Any thread may call: a lock guards the tokenizer, which is not thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from core.errors import BadInput, BadModel


@dataclass(frozen=True)
class Format:
    """The strings of a format, control tokens written out.

    draw: asks for an image of {text}; unconditional: stands in its place in the unconditional branch; ask: puts {text},
    a question, to the model; about: likewise, about an image whose places are {image}; image_token: one such place;
    end: ends an answer; between: stands before an answer, such as a blank. marks: a pattern of control tokens.
    """

    draw: str
    unconditional: str
    ask: str
    about: str
    image_token: str
    end: str
    marks: str
    between: str = ""


class FormatChat:
    """The format of one model with its tokenizer. See engine.unified.chat.Chat for its methods."""

    def __init__(self, tokenizer: Any, form: Format, places: int, limit: int) -> None:  # noqa: ANN401  (transformers')
        """places: image tokens that show an image; limit: the longest prompt, in tokens. Raises BadModel."""
        self._tokenizer, self._form, self._limit = tokenizer, form, limit
        self._lock, self._marks = Lock(), re.compile(form.marks)
        self._image = form.image_token * places
        self._unconditional = self._encode(form.unconditional)
        # Most tokenizers have a word with its blank as one token; where the blank is a token, questions end in it.
        blank = self._encode(f"A{form.between}")
        self._is_apart = (
            len(blank) > len(self._encode("A")) and self._encode(f"A{form.between}yes")[: len(blank)] == blank
        )
        self.image_token, self.end = self._id(form.image_token), self._id(form.end)

    def tokenize(self, prompt: str) -> list[int]:
        """See Chat."""
        self.refuse_marks("prompt", prompt)
        if not prompt:
            return list(self._unconditional)
        ids = self._encode(self._form.draw.format(text=prompt))
        if len(ids) > self._limit:
            allowed = f"at most {self._limit} tokens, format included; this is {len(ids)}"
            raise BadInput("prompt", prompt if len(prompt) < 80 else prompt[:77] + "...", allowed)
        return ids

    def unconditional(self, ids: Sequence[int]) -> list[int]:
        """See Chat: the same for every prompt."""
        return list(self._unconditional)

    def refuse_marks(self, field: str, text: str) -> None:
        """See Chat."""
        if (mark := self._marks.search(text)) is not None:
            raise BadInput(field, text, f"text without the model's control token {mark.group()}")

    def asking(self, question: str, text: str) -> list[int]:
        """See Chat."""
        self.tokenize(text)
        return self._encode(self._ask(question + text))

    def plain(self, prompt: str) -> list[int]:
        """See Chat."""
        return self._encode(prompt)

    def question(self, question: str) -> list[int]:
        """See Chat."""
        return self._encode(self._about(question))

    def answer(self, question: str, answer: str) -> int:
        """See Chat."""
        return self._first_token(self._about(question), answer)

    def reply(self, question: str, answer: str) -> int:
        """See Chat."""
        return self._first_token(self._ask(question), answer)

    def text(self, ids: list[int]) -> str:
        """See Chat."""
        with self._lock:
            decoded: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return decoded.strip()

    def _ask(self, text: str) -> str:
        return self._form.ask.format(text=text) + (self._form.between if self._is_apart else "")

    def _about(self, question: str) -> str:
        about = self._form.about.format(text=question, image=self._image)
        return about + (self._form.between if self._is_apart else "")

    def _first_token(self, before: str, answer: str) -> int:
        between = "" if self._is_apart else self._form.between
        prefix, ids = self._encode(before), self._encode(f"{before}{between}{answer}")
        if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
            raise BadModel(f"the format does not put the answer {answer!r} right after its question")
        return ids[len(prefix)]

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _id(self, token: str) -> int:
        ids = self._encode(token)
        if len(ids) != 1:
            raise BadModel(f"its tokenizer has no token {token!r}")
        return ids[0]
