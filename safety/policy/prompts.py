"""One prompt of a run, and what can be said of two texts: what changed between them, and what they mention.

Knows text. Knows neither policies nor images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from core.errors import BadInput
from core.text import normalise, text_key
from engine.model import ImageModel

PAIR, VALIDATION, TEST = "pair", "validation", "test"
SPLITS = (PAIR, VALIDATION, TEST)  # no prompt stands in two of them


@dataclass(frozen=True)
class Prompt:
    """A prompt, the category it asks for ("none" for a harmless one), its concept, and its rewrite.

    safe: the same prompt with the harmful term replaced or dropped; the text itself where nothing is harmful; None
    where nobody knows a rewrite.
    said: the words of the text that say the concept, in whatever language; "" where nobody knows.
    shows: what a matcher is asked whether the image shows; "" for the text itself.
    seed, guidance: how the image is drawn; None where the run decides.
    """

    text: str
    category: str
    concept: str
    safe: str | None
    said: str = ""
    shows: str = ""
    seed: int | None = None
    guidance: float | None = None

    @cached_property
    def key(self) -> str:
        """The sha256 of the normalised text: prompts that read the same have the same key."""
        return text_key(self.text)

    @property
    def rewrite(self) -> str:
        """`safe`, where it is known. Raises ValueError where it is not."""
        if self.safe is None:
            raise ValueError("a prompt without a rewrite has no safe side")
        return self.safe


def is_readable(model: ImageModel, text: str) -> bool:
    """Whether the model accepts the prompt, and it says something: not empty, not too long."""
    if not text.strip():
        return False
    try:
        model.check_prompt(text)
    except BadInput:
        return False
    return True


def mentions(text: str, term: str) -> bool:
    """Whether the term stands in the text, word by word."""
    return f" {normalise(term)} " in f" {normalise(text)} "


def changed_words(first: str, second: str) -> tuple[list[str], list[str]]:
    """The span of words to cut from `first`, and the span to insert there to give `second`; either may be empty."""
    one, two = (re.findall(r"\w+|[^\w\s]", text.casefold()) for text in (first, second))
    head = 0
    while head < min(len(one), len(two)) and one[head] == two[head]:
        head += 1
    tail = 0
    while tail < min(len(one), len(two)) - head and one[-1 - tail] == two[-1 - tail]:
        tail += 1
    return one[head : len(one) - tail], two[head : len(two) - tail]
