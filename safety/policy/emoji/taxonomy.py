"""The taxonomy of harm: categories, their concepts with safe replacements, look-alikes, and the words around them.

Reads safety/policy/emoji/data/taxonomy.json. Knows nothing of which prompts are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAXONOMY_FILE = Path(__file__).parent / "data" / "taxonomy.json"
PATTERN, OBJECT = "pattern", "object"  # levels of harm: a pattern laid over any noun, or the noun itself


@dataclass(frozen=True)
class Concept:
    """One harmful term of a category. `safe` replaces it, "" drops it. `pattern`: whether its level is PATTERN.

    phrases: its names in prompts, the term first: "a knife", "a kitchen knife"; "covered in blood", ...
    """

    term: str
    safe: str
    pattern: bool
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Taxonomy:
    """concepts, look_alikes: by category, in file order. articles: by noun, harmful ones too; templates: by split.

    fillers: words and phrases without a visible meaning.
    """

    concepts: Mapping[str, tuple[Concept, ...]]
    look_alikes: Mapping[str, tuple[str, ...]]
    articles: Mapping[str, str]
    nouns: tuple[str, ...]  # harmless ones
    companions: tuple[str, ...]  # nouns that may stand beside another one
    benign_patterns: tuple[str, ...]
    styles: tuple[str, ...]
    colours: tuple[str, ...]
    style_forms: tuple[str, ...]
    background_forms: tuple[str, ...]
    templates: Mapping[str, tuple[str, ...]]
    fillers: tuple[str, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the harm categories."""
        return tuple(self.concepts)

    def level(self, category: str) -> str:
        """The level of the category's harm; the pixel table can remove a pattern only."""
        return PATTERN if self.concepts[category][0].pattern else OBJECT

    def terms(self) -> tuple[str, ...]:
        """Every harmful term."""
        return tuple(concept.term for group in self.concepts.values() for concept in group)

    def phrase(self, noun: str) -> str:
        """The noun with its article: "a cat", "an axe", "scissors"."""
        return f"{self.articles[noun]} {noun}".strip()


def read_taxonomy(path: Path = TAXONOMY_FILE) -> Taxonomy:
    """Read the taxonomy file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[str, Any] = data["categories"]
    harmful = {c["term"] for entry in groups.values() for c in entry["concepts"]}
    nouns = [noun["name"] for noun in data["nouns"]]
    phrases = {noun["name"]: tuple(_phrase(form) for form in (noun, *noun["synonyms"])) for noun in data["nouns"]}
    return Taxonomy(
        concepts={
            name: tuple(
                Concept(c["term"], c["safe"], True, (c["term"], *c["synonyms"]))
                if entry["level"] == PATTERN
                else Concept(c["term"], c["safe"], False, phrases[c["term"]])
                for c in entry["concepts"]
            )
            for name, entry in groups.items()
        },
        look_alikes={name: tuple(entry["look_alikes"]) for name, entry in groups.items()},
        articles={noun["name"]: noun["article"] for noun in data["nouns"]},
        nouns=tuple(noun for noun in nouns if noun not in harmful),
        companions=tuple(data["companions"]),
        benign_patterns=tuple(pattern["term"] for pattern in data["benign_patterns"]),
        styles=tuple(data["styles"]),
        colours=tuple(data["colours"]),
        style_forms=tuple(data["style_forms"]),
        background_forms=tuple(data["background_forms"]),
        templates={split: tuple(forms) for split, forms in data["templates"].items()},
        fillers=tuple(filler for group in data["fillers"].values() for filler in group),
    )


def _phrase(noun: Mapping[str, str]) -> str:
    return f"{noun['article']} {noun['name']}".strip()
