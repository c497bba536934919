"""Prompt writer: harmful prompts, benign ones, look-alikes, other languages; seeded, and distinct by hash.

Knows the taxonomy. Knows nothing of images.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import BadInput
from core.text import text_key
from engine.model import CATEGORY_NONE, ImageModel
from safety.policy.languages import Language, read_languages
from safety.policy.taxonomy import Concept, Taxonomy

PAIR, VALIDATION, TEST = "pair", "validation", "test"  # splits of the templates
TRIES = 50  # draws a prompt, after which a small taxonomy counts as exhausted
SAYS_STYLE = SAYS_COLOUR = 0.7
BENIGN_PATTERN = 0.2  # share of benign prompts with a harmless pattern
LOOK_ALIKE = 0.25  # share of benign prompts about a look-alike


@dataclass(frozen=True)
class Prompt:
    """A prompt, its category (CATEGORY_NONE for a benign one), its concept, and its rewrite by the table.

    safe: the same prompt with the harmful term replaced or dropped; the text itself where nothing is harmful.
    said: the words of the text that say the concept, in its language; "" where unknown.
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


class PromptWriter:
    """Writes prompts, none of them twice; a function of its seed and of the order of calls."""

    def __init__(self, taxonomy: Taxonomy, rng: random.Random) -> None:
        """`rng` is the writer's own from here on."""
        self._taxonomy, self._rng, self._languages = taxonomy, rng, read_languages()
        self._taken: set[str] = set()

    def harmful(self, category: str, split: str, count: int, synonyms: float = 0.0) -> tuple[Prompt, ...]:
        """Up to `count` prompts of the category, its concepts in turn; a share of them says a synonym."""
        concepts = self._taxonomy.concepts[category]

        def write(i: int) -> Prompt:
            concept = concepts[i % len(concepts)]
            others = concept.phrases[1:] if self._rng.random() < synonyms else ()
            return self._harmful(category, concept, self._rng.choice(others or concept.phrases[:1]), split)

        return self._distinct(count, write)

    def scenes(self, category: str, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts as for the category, with nothing harmful in them: the same scene made safe."""
        concepts = self._taxonomy.concepts[category]

        def write(i: int) -> Prompt:
            concept = concepts[i % len(concepts)]
            return self._plain(concept.safe or self._rng.choice(self._taxonomy.nouns), "", split)

        return self._distinct(count, write)

    def compositions(self, category: str, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts about a look-alike of the category and something beside it."""
        words, rng = self._taxonomy, self._rng
        nouns = words.look_alikes[category]

        def write(i: int) -> Prompt:
            noun, beside = nouns[i % len(nouns)], rng.choice(words.companions)
            (text,) = self._sentences([f"{words.phrase(noun)} and {words.phrase(beside)}"], split)
            return Prompt(text, CATEGORY_NONE, noun, text, noun)

        return self._distinct(count, write)

    def foreign(self, category: str, language: str, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts in another language; of the category, or benign ones for CATEGORY_NONE."""
        words = self._languages[language]
        concepts = self._taxonomy.concepts.get(category, ())

        def write(i: int) -> Prompt:
            noun = self._rng.choice(self._taxonomy.nouns)
            if not concepts:
                (text,) = self._foreign_sentences(words, [words.subject(noun)], split)
                return Prompt(text, CATEGORY_NONE, noun, text, words.nouns[noun])
            concept = concepts[i % len(concepts)]
            if concept.pattern:
                said, subjects = words.patterns[concept.term], [words.subject(noun, concept.term), words.subject(noun)]
            else:
                said, subjects = words.nouns[concept.term], [words.nouns[concept.term], words.nouns[concept.safe]]
            unsafe, safe = self._foreign_sentences(words, subjects, split)
            return Prompt(unsafe, category, concept.term, safe, said)

        return self._distinct(count, write)

    def benign(self, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts about harmless nouns, look-alikes among them, some under a harmless pattern."""
        alike = sorted({noun for group in self._taxonomy.look_alikes.values() for noun in group})

        def write(_: int) -> Prompt:
            noun = self._rng.choice(alike if self._rng.random() < LOOK_ALIKE else self._taxonomy.nouns)
            pattern = self._rng.choice(self._taxonomy.benign_patterns) if self._rng.random() < BENIGN_PATTERN else ""
            return self._plain(noun, pattern, split)

        return self._distinct(count, write)

    def look_alikes(self, category: str, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts about the look-alikes of a category, in turn."""
        nouns = self._taxonomy.look_alikes[category]
        return self._distinct(count, lambda i: self._plain(nouns[i % len(nouns)], "", split))

    def _distinct(self, count: int, write: Callable[[int], Prompt]) -> tuple[Prompt, ...]:
        prompts: list[Prompt] = []
        for _ in range(TRIES * count):
            if len(prompts) == count:
                break
            prompt = write(len(prompts))
            if prompt.key not in self._taken:
                self._taken.add(prompt.key)
                prompts.append(prompt)
        return tuple(prompts)

    def _harmful(self, category: str, concept: Concept, said: str, split: str) -> Prompt:
        words = self._taxonomy
        if concept.pattern:
            noun = words.phrase(self._rng.choice(words.nouns))
            subjects = [f"{noun} {said}", f"{noun} {concept.safe}".strip()]
        else:
            subjects = [said, words.phrase(concept.safe)]
        unsafe, safe = self._sentences(subjects, split)
        return Prompt(unsafe, category, concept.term, safe, said)

    def _plain(self, noun: str, pattern: str, split: str) -> Prompt:
        (text,) = self._sentences([f"{self._taxonomy.phrase(noun)} {pattern}".strip()], split)
        return Prompt(text, CATEGORY_NONE, noun, text, noun)

    def _sentences(self, subjects: list[str], split: str) -> list[str]:
        """The subjects in the same wording."""
        words, rng = self._taxonomy, self._rng
        template = rng.choice(words.templates[split])
        style = rng.choice(words.style_forms).format(style=rng.choice(words.styles))
        background = rng.choice(words.background_forms).format(colour=rng.choice(words.colours))
        style = style if rng.random() < SAYS_STYLE else ""
        background = background if rng.random() < SAYS_COLOUR else ""
        return [template.format(subject=subject, style=style, background=background) for subject in subjects]

    def _foreign_sentences(self, language: Language, subjects: list[str], split: str) -> list[str]:
        words, rng = self._taxonomy, self._rng
        template = rng.choice(language.templates[split])
        style = language.says_style(rng.choice(words.styles)) if rng.random() < SAYS_STYLE else ""
        background = language.says_background(rng.choice(words.colours)) if rng.random() < SAYS_COLOUR else ""
        return [template.format(subject=subject, style=style, background=background) for subject in subjects]


def is_readable(model: ImageModel, text: str) -> bool:
    """Whether the model accepts the prompt: not empty, not too long."""
    try:
        model.check_prompt(text)
    except BadInput:
        return False
    return True


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
