"""Prompts of the emoji world: harmful ones, benign ones, look-alikes, in English and other languages. Seeded.

Knows the taxonomy. Knows nothing of images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from core.text import text_key
from engine.model import CATEGORY_NONE
from safety.policy.emoji.languages import Language, read_languages
from safety.policy.emoji.taxonomy import Concept, Taxonomy
from safety.policy.prompts import SPLITS, Prompt

TRIES = 50  # draws a prompt wanted, before a small taxonomy is taken to be exhausted
SAYS_STYLE = SAYS_COLOUR = 0.7
BENIGN_PATTERN = 0.2  # share of benign prompts with a harmless look
LOOK_ALIKE = 0.25  # share of benign prompts about a look-alike


class PromptWriter:
    """Writes prompts that differ from all it wrote before; a function of its seed and of the order of calls."""

    def __init__(self, taxonomy: Taxonomy, rng: random.Random, apart: bool = False) -> None:
        """`rng` is the writer's own from here on.

        apart: leave a sentence that templates of two splits give to the first of them, so that writers of the same
        taxonomy share no prompt across splits.
        """
        self._taxonomy, self._rng, self._apart, self._languages = taxonomy, rng, apart, read_languages()
        self._taken: set[str] = set()

    def harmful(self, category: str, split: str, count: int, synonyms: float = 0.0) -> tuple[Prompt, ...]:
        """Up to `count` prompts that ask for the category, its concepts in turn; a share of them says a synonym."""
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
        """Up to `count` prompts in another language; of the category, or benign ones for "none"."""
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
        """Up to `count` prompts about harmless nouns, look-alikes among them, some under a harmless look."""
        alike = sorted({noun for group in self._taxonomy.look_alikes.values() for noun in group})

        def write(_: int) -> Prompt:
            noun = self._rng.choice(alike if self._rng.random() < LOOK_ALIKE else self._taxonomy.nouns)
            look = self._rng.choice(self._taxonomy.benign_patterns) if self._rng.random() < BENIGN_PATTERN else ""
            return self._plain(noun, look, split)

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

    def _plain(self, noun: str, look: str, split: str) -> Prompt:
        (text,) = self._sentences([f"{self._taxonomy.phrase(noun)} {look}".strip()], split)
        return Prompt(text, CATEGORY_NONE, noun, text, noun)

    def _sentences(
        self, subjects: list[str], split: str, templates: Mapping[str, Sequence[str]] | None = None
    ) -> list[str]:
        """The subjects in one and the same wording; templates: by split, the taxonomy's by default."""
        words, rng = self._taxonomy, self._rng
        templates = words.templates if templates is None else templates
        template = rng.choice(templates[split])
        style = rng.choice(words.style_forms).format(style=rng.choice(words.styles))
        background = rng.choice(words.background_forms).format(colour=rng.choice(words.colours))
        style = style if rng.random() < SAYS_STYLE else ""
        background = background if rng.random() < SAYS_COLOUR else ""
        self._leave(templates, split, subject=subjects[0], style=style, background=background)
        return [template.format(subject=subject, style=style, background=background) for subject in subjects]

    def _foreign_sentences(self, language: Language, subjects: list[str], split: str) -> list[str]:
        words, rng = self._taxonomy, self._rng
        template = rng.choice(language.templates[split])
        style = language.says_style(rng.choice(words.styles)) if rng.random() < SAYS_STYLE else ""
        background = language.says_background(rng.choice(words.colours)) if rng.random() < SAYS_COLOUR else ""
        self._leave(language.templates, split, subject=subjects[0], style=style, background=background)
        return [template.format(subject=subject, style=style, background=background) for subject in subjects]

    def _leave(self, templates: Mapping[str, Sequence[str]], split: str, **parts: str) -> None:
        """Count what earlier splits make of the parts as taken, in a writer that keeps splits apart."""
        if self._apart:
            earlier = (form for before in SPLITS[: SPLITS.index(split)] for form in templates[before])
            self._taken |= {text_key(form.format(**parts)) for form in earlier}
