"""Strata of the standard suite, each with its harmless twin: templates that no prompt of a run has.

Two harms in one prompt, negation, long prompts, words run together, mixed case, a foreign word in an English sentence,
and languages in which the model has never been asked. Templates and words are in data/strata.json, for the suite alone.
Knows words. Knows nothing of images.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety.policy.emoji.languages import Language, read_languages
from safety.policy.emoji.taxonomy import OBJECT, Concept, Taxonomy
from safety.policy.prompt_file import AskedPrompt

STRATA_FILE = Path(__file__).parent / "data" / "strata.json"
TWO_HARMS, NEGATED, LONG, TOGETHER, MIXED_CASE, SWITCHED, UNKNOWN = STRATA = (
    "two harms",
    "negated",
    "long",
    "run together",
    "mixed case",
    "foreign word",
    "unknown language",
)
TRIES = 200  # to write a text that is new


class StrataWriter:
    """Writes the strata's prompts, no text twice, seeded; a function of its seed and of the order of calls."""

    def __init__(self, taxonomy: Taxonomy, rng: random.Random) -> None:
        """`rng` is the writer's own from here on."""
        self._taxonomy, self._rng, self._languages = taxonomy, rng, tuple(read_languages().values())
        self._words: Mapping[str, Any] = json.loads(STRATA_FILE.read_text(encoding="utf-8"))
        self._written: set[str] = set()
        self._write: Mapping[str, Callable[[Concept | None, str], str]] = {
            TWO_HARMS: self._two,
            NEGATED: self._negated,
            LONG: lambda concept, noun: self._sentence(self._subject(concept, noun), "long"),
            TOGETHER: lambda concept, noun: self._sentence(self._subject(concept, noun).replace(" ", "")),
            MIXED_CASE: lambda concept, noun: self._sentence(mixed_case(self._subject(concept, noun), self._rng)),
            SWITCHED: self._switched,
            UNKNOWN: self._unknown,
        }

    def harmful(self, stratum: str, category: str, count: int) -> list[AskedPrompt]:
        """Up to `count` prompts of the category, its concepts in turn; fewer where there are no more."""
        concepts, group = self._taxonomy.concepts[category], f"{self._taxonomy.level(category)}, {stratum}"
        pairs = self._fresh(stratum, [concepts[i % len(concepts)] for i in range(count)], self._taxonomy.nouns)
        return [AskedPrompt(text, (group,)) for text, _ in pairs]

    def benign(self, stratum: str, count: int) -> list[AskedPrompt]:
        """Up to `count` harmless twins, each with the noun that its image is to show; fewer where there are no more."""
        known = tuple(next(iter(self._words["unknown_language"].values()))["benign"])
        pairs = self._fresh(stratum, [None] * count, known if stratum == UNKNOWN else self._taxonomy.nouns)
        return [AskedPrompt(text, (f"benign, {stratum}",), shows=noun) for text, noun in pairs]

    def _fresh(
        self, stratum: str, concepts: Sequence[Concept | None], nouns: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """A text for each concept that was not written before, and its noun; none where TRIES give no new one."""
        for concept in concepts:
            for _ in range(TRIES):
                noun = self._rng.choice(nouns)
                text = self._write[stratum](concept, noun)
                if text not in self._written:
                    self._written.add(text)
                    yield text, noun
                    break

    def _sentence(self, subject: str, kind: str = "templates") -> str:
        return str(self._rng.choice(self._words[kind])).format(subject=subject)

    def _subject(self, concept: Concept | None, noun: str) -> str:
        """The words for a noun with the concept's pattern, for the concept's object, or for the noun alone."""
        if concept is None:
            return self._taxonomy.phrase(noun)
        said = self._rng.choice(concept.phrases)
        return f"{self._taxonomy.phrase(noun)} {said}" if concept.pattern else said

    def _two(self, concept: Concept | None, noun: str) -> str:
        """A harmful object under a harmful pattern, the one of the category and any of the other level."""
        if concept is None:
            return self._sentence(f"{self._taxonomy.phrase(noun)} {self._rng.choice(self._taxonomy.benign_patterns)}")
        others = [
            other
            for name, concepts in self._taxonomy.concepts.items()
            for other in concepts
            if (self._taxonomy.level(name) == OBJECT) == concept.pattern
        ]
        pair = (concept, self._rng.choice(others))
        thing, pattern = sorted(pair, key=lambda each: each.pattern)
        return self._sentence(f"{self._rng.choice(thing.phrases)} {self._rng.choice(pattern.phrases)}")

    def _negated(self, concept: Concept | None, noun: str) -> str:
        """One thing, and another that is not to be shown."""
        kind = "benign" if concept is None else "harmful"
        every = [each for concepts in self._taxonomy.concepts.values() for each in concepts if not each.pattern]
        harm = self._subject(concept or self._rng.choice(every), noun)
        form = str(self._words["negated"][kind])
        safe = noun if concept is None else self._rng.choice([each for each in self._taxonomy.nouns if each != noun])
        return self._sentence(form.format(harm=harm, safe=self._taxonomy.phrase(safe)))

    def _switched(self, concept: Concept | None, noun: str) -> str:
        """An English sentence about a subject in another language."""
        language: Language = self._rng.choice(self._languages)
        if concept is None:
            return self._sentence(language.subject(noun))
        subject = language.subject(noun, concept.term) if concept.pattern else language.nouns[concept.term]
        return self._sentence(subject)

    def _unknown(self, concept: Concept | None, noun: str) -> str:
        language = self._words["unknown_language"][self._rng.choice(sorted(self._words["unknown_language"]))]
        subject = language["benign"][noun] if concept is None else language["harmful"][concept.term]
        return str(self._rng.choice(language["templates"])).format(subject=subject)


def mixed_case(text: str, rng: random.Random) -> str:
    """The text with each letter large or small at random."""
    return "".join(rng.choice((letter.upper(), letter.lower())) for letter in text)
