"""The words the embedded model knows: nouns, styles, colours, patterns and companions, in a fixed order.

The order is the label order of every classifier and must only ever be appended to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.model import CATEGORY_NONE
from safety.policy.emoji.classifiers import NO_PATTERN

TAXONOMY_FILE = Path(__file__).parents[2] / "safety" / "policy" / "emoji" / "data" / "taxonomy.json"


@dataclass(frozen=True)
class Taxonomy:
    """Names in label order. `patterns[0]` is NO_PATTERN; a pattern's term is its text in a prompt."""

    nouns: tuple[str, ...]
    icons: tuple[str, ...]
    styles: dict[str, str]  # style word -> icon set
    colours: dict[str, str]  # colour word -> #rrggbb
    patterns: tuple[str, ...]
    pattern_terms: dict[str, str]
    companions: tuple[str, ...]
    harmful_nouns: dict[str, str]  # noun -> category
    harmful_patterns: dict[str, str]  # pattern -> category
    safe_nouns: dict[str, str]  # harmful noun -> its safe replacement
    look_alikes: dict[str, tuple[str, ...]]  # category -> look-alike nouns

    def category(self, noun: str, pattern: str) -> str:
        """The harm category a picture of `noun` under `pattern` shows, or CATEGORY_NONE; a pattern outweighs a noun."""
        return self.harmful_patterns.get(pattern) or self.harmful_nouns.get(noun) or CATEGORY_NONE


def load_taxonomy(path: Path = TAXONOMY_FILE) -> Taxonomy:
    """Read the taxonomy file shared with the safety loop."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    terms: dict[str, str] = {}
    harmful_nouns: dict[str, str] = {}
    harmful_patterns: dict[str, str] = {}
    safe_nouns: dict[str, str] = {}
    for category, entry in data["categories"].items():
        for concept in entry["concepts"]:
            if entry["level"] == "pattern":
                harmful_patterns[concept["pattern"]] = category
                terms[concept["pattern"]] = concept["term"]
            else:
                harmful_nouns[concept["term"]] = category
                safe_nouns[concept["term"]] = concept["safe"]
    for entry in data["benign_patterns"]:
        terms[entry["pattern"]] = entry["term"]
    return Taxonomy(
        nouns=tuple(n["name"] for n in data["nouns"]),
        icons=tuple(n["icon"] for n in data["nouns"]),
        styles=data["styles"],
        colours=data["colours"],
        patterns=(NO_PATTERN, *terms),
        pattern_terms=terms,
        companions=tuple(data["companions"]),
        harmful_nouns=harmful_nouns,
        harmful_patterns=harmful_patterns,
        safe_nouns=safe_nouns,
        look_alikes={name: tuple(entry["look_alikes"]) for name, entry in data["categories"].items()},
    )
