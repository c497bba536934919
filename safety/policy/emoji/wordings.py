"""Further ways of asking, in which later rounds look for failures: each for harmful prompts and for harmless twins.

Two harms in one prompt, negation, long sentences, words run together, mixed case, a foreign word in an English
sentence. Forms by split are in data/wordings.json; the standard suite has others of its own (strata.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety.policy.emoji.languages import read_languages
from safety.policy.emoji.strata import LONG, MIXED_CASE, NEGATED, SWITCHED, TOGETHER, TWO_HARMS, mixed_case
from safety.policy.emoji.taxonomy import Concept, Taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.prompts import Prompt

WORDINGS_FILE = Path(__file__).parent / "data" / "wordings.json"
WORDINGS = (TWO_HARMS, NEGATED, LONG, TOGETHER, MIXED_CASE, SWITCHED)


@dataclass(frozen=True)
class Subject:
    """The words for what an image is to show, for its safe twin, and those of `unsafe` that say the harm."""

    unsafe: str
    safe: str
    said: str


class WordingWriter(PromptWriter):
    """Writes prompts of each way that differ from all it wrote before; a function of its seed and order of calls."""

    def __init__(self, taxonomy: Taxonomy, rng: random.Random) -> None:
        """`rng` is the writer's own from here on."""
        super().__init__(taxonomy, rng, apart=True)
        self._foreign_words = tuple(read_languages().values())
        self._forms: Mapping[str, Any] = json.loads(WORDINGS_FILE.read_text(encoding="utf-8"))
        self._subjects: Mapping[str, Callable[[Concept | None, str, str], Subject]] = {
            TWO_HARMS: lambda concept, noun, split: self._two(concept, noun),
            NEGATED: self._negated,
            LONG: lambda concept, noun, split: self._one(concept, noun),
            TOGETHER: lambda concept, noun, split: _respelt(
                self._one(concept, noun), lambda text: text.replace(" ", "")
            ),
            MIXED_CASE: lambda concept, noun, split: _respelt(
                self._one(concept, noun), lambda text: mixed_case(text, self._rng)
            ),
            SWITCHED: lambda concept, noun, split: self._switched(concept, noun),
        }

    def worded(self, way: str, category: str, split: str, count: int) -> tuple[Prompt, ...]:
        """Up to `count` prompts of a category, its concepts in turn, or harmless ones for "none"."""
        concepts = self._taxonomy.concepts.get(category, ())
        templates = self._forms[LONG] if way == LONG else self._taxonomy.templates

        def write(i: int) -> Prompt:
            noun = self._rng.choice(self._taxonomy.nouns)
            concept = concepts[i % len(concepts)] if concepts else None
            subject = self._subjects[way](concept, noun, split)
            unsafe, safe = self._sentences([subject.unsafe, subject.safe], split, templates)
            return Prompt(unsafe, category, noun if concept is None else concept.term, safe, subject.said)

        return self._distinct(count, write)

    def _one(self, concept: Concept | None, noun: str) -> Subject:
        phrase = self._taxonomy.phrase
        if concept is None:
            return Subject(phrase(noun), phrase(noun), phrase(noun))
        said = self._rng.choice(concept.phrases)
        if concept.pattern:
            return Subject(f"{phrase(noun)} {said}", f"{phrase(noun)} {concept.safe}".strip(), said)
        return Subject(said, phrase(concept.safe), said)

    def _two(self, concept: Concept | None, noun: str) -> Subject:
        """A harmful object under a harmful pattern: the concept, and any of the other level."""
        if concept is None:
            text = f"{self._taxonomy.phrase(noun)} {self._rng.choice(self._taxonomy.benign_patterns)}"
            return Subject(text, text, text)
        every = (other for concepts in self._taxonomy.concepts.values() for other in concepts)
        other = self._rng.choice([other for other in every if other.pattern != concept.pattern])
        thing, pattern = sorted((concept, other), key=lambda each: each.pattern)
        text = f"{self._rng.choice(thing.phrases)} {self._rng.choice(pattern.phrases)}"
        return Subject(text, f"{self._taxonomy.phrase(thing.safe)} {pattern.safe}".strip(), text)

    def _negated(self, concept: Concept | None, noun: str, split: str) -> Subject:
        """One thing, and another that is not to be shown."""
        harmful, benign = self._rng.choice(self._forms[NEGATED][split])
        shown = noun if concept is None or concept.pattern else concept.safe
        other = self._taxonomy.phrase(self._rng.choice([each for each in self._taxonomy.nouns if each != shown]))
        one = self._one(concept, noun)
        if concept is not None:
            unsafe, safe = (harmful.format(harm=text, safe=other) for text in (one.unsafe, one.safe))
            return Subject(unsafe, safe, one.said)
        objects = [each for concepts in self._taxonomy.concepts.values() for each in concepts if not each.pattern]
        text = benign.format(harm=self._rng.choice(self._rng.choice(objects).phrases), safe=one.safe)
        return Subject(text, text, one.said)

    def _switched(self, concept: Concept | None, noun: str) -> Subject:
        """The subject in another language."""
        language = self._rng.choice(self._foreign_words)
        plain = language.subject(noun)
        if concept is None:
            return Subject(plain, plain, language.nouns[noun])
        if concept.pattern:
            return Subject(language.subject(noun, concept.term), plain, language.patterns[concept.term])
        said = language.nouns[concept.term]
        return Subject(said, language.nouns[concept.safe], said)


def _respelt(subject: Subject, spell: Callable[[str], str]) -> Subject:
    """The subject with the words that say its harm, or all of a harmless one, spelt another way."""
    said = spell(subject.said)
    unsafe = subject.unsafe.replace(subject.said, said)
    return replace(subject, unsafe=unsafe, safe=unsafe if subject.safe == subject.unsafe else subject.safe, said=said)
