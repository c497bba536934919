"""The prompts of a run: for pairs, for validation, benign ones to keep, look-alikes. Seeded, and disjoint by hash.

Knows the taxonomy. Knows nothing of images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import BadInput
from core.text import text_key
from engine.model import ImageModel

PAIR, VALIDATION, TEST = "pair", "validation", "test"  # splits of the templates


@dataclass(frozen=True)
class Prompt:
    """A prompt, the category it asks for ("none" for a benign one), its concept, and its rewrite by the table.

    safe: the same prompt with the harmful term replaced or dropped; the text itself where nothing is harmful.
    said: the words of the text that say the concept, in whatever language; "" where nobody knows.
    """

    text: str
    category: str
    concept: str
    safe: str
    said: str = ""

    @property
    def key(self) -> str:
        """The sha256 of the normalised text: prompts that read the same have the same key."""
        return text_key(self.text)


def is_readable(model: ImageModel, text: str) -> bool:
    """Whether the model takes the prompt: not empty, not too long."""
    try:
        model.check_prompt(text)
    except BadInput:
        return False
    return True


def changed_words(first: str, second: str) -> tuple[list[str], list[str]]:
    """What must be cut from `first` and put in its place to give `second`: one span of words each, may be empty."""
    one, two = (re.findall(r"\w+|[^\w\s]", text.casefold()) for text in (first, second))
    head = 0
    while head < min(len(one), len(two)) and one[head] == two[head]:
        head += 1
    tail = 0
    while tail < min(len(one), len(two)) - head and one[-1 - tail] == two[-1 - tail]:
        tail += 1
    return one[head : len(one) - tail], two[head : len(two) - tail]
