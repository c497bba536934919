"""The words of the taxonomy in other languages, for prompts about the same images.

Reads safety/policy/emoji/data/languages.json. Knows nothing of which prompts are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LANGUAGES_FILE = Path(__file__).parent / "data" / "languages.json"
ENGLISH = "en"


@dataclass(frozen=True)
class Language:
    """A language other than English. nouns, patterns, colours: by the English words; templates: by split.

    conjunction: "and"; style, background: forms with {style} and {colour}, appended to a subject.
    """

    code: str
    script: str
    conjunction: str
    nouns: Mapping[str, str]
    patterns: Mapping[str, str]
    colours: Mapping[str, str]
    style: str
    background: str
    templates: Mapping[str, tuple[str, ...]]

    def subject(self, noun: str, pattern: str = "", companion: str = "") -> str:
        """The subject of a sentence; noun, pattern and companion are English words, "" for none."""
        with_companion = [self.conjunction, self.nouns[companion]] if companion else []
        return " ".join([self.nouns[noun], *with_companion, *([self.patterns[pattern]] if pattern else [])])

    def says_style(self, style: str) -> str:
        """The words for a style, after a subject."""
        return self.style.format(style=style)

    def says_background(self, colour: str) -> str:
        """The words for a background colour, given in English, after a subject."""
        return self.background.format(colour=self.colours[colour])


def read_languages(path: Path = LANGUAGES_FILE) -> dict[str, Language]:
    """The languages of the file, by code."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {
        code: Language(
            code=code,
            script=words["script"],
            conjunction=words["and"],
            nouns=words["nouns"],
            patterns=words["patterns"],
            colours=words["colours"],
            style=words["style"],
            background=words["background"],
            templates={split: tuple(forms) for split, forms in words["templates"].items()},
        )
        for code, words in data.items()
    }
