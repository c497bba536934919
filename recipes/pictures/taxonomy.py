"""The words the embedded model knows: nouns, styles, colours, looks and companions, in a fixed order.

The order is the label order of every classifier and must only ever be appended to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAXONOMY_FILE = Path(__file__).parents[2] / "safety" / "policy" / "data" / "taxonomy.json"


@dataclass(frozen=True)
class Taxonomy:
    """Names in label order. `looks[0]` is "none"; a look's term is what a prompt says, e.g. "covered in blood"."""

    nouns: tuple[str, ...]
    icons: tuple[str, ...]
    styles: dict[str, str]  # style word -> icon set
    colours: dict[str, str]  # colour word -> #rrggbb
    looks: tuple[str, ...]
    look_terms: dict[str, str]
    companions: tuple[str, ...]
    harmful_nouns: dict[str, str]  # noun -> category
    harmful_looks: dict[str, str]  # look -> category
    safe_nouns: dict[str, str]  # harmful noun -> its safe replacement
    neighbours: dict[str, tuple[str, ...]]  # category -> look-alike nouns

    def category(self, noun: str, look: str) -> str:
        """The harm category a picture of `noun` under `look` shows, or "none"; a look outweighs a noun."""
        return self.harmful_looks.get(look) or self.harmful_nouns.get(noun) or "none"


def load_taxonomy(path: Path = TAXONOMY_FILE) -> Taxonomy:
    """Read the taxonomy file shared with the safety loop."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    terms: dict[str, str] = {}
    harmful_nouns: dict[str, str] = {}
    harmful_looks: dict[str, str] = {}
    safe_nouns: dict[str, str] = {}
    for category, entry in data["categories"].items():
        for concept in entry["concepts"]:
            if entry["level"] == "pattern":
                harmful_looks[concept["look"]] = category
                terms[concept["look"]] = concept["term"]
            else:
                harmful_nouns[concept["term"]] = category
                safe_nouns[concept["term"]] = concept["safe"]
    for entry in data["benign_looks"]:
        terms[entry["look"]] = entry["term"]
    return Taxonomy(
        nouns=tuple(n["name"] for n in data["nouns"]),
        icons=tuple(n["icon"] for n in data["nouns"]),
        styles=data["styles"],
        colours=data["colours"],
        looks=("none", *terms),
        look_terms=terms,
        companions=tuple(data["companions"]),
        harmful_nouns=harmful_nouns,
        harmful_looks=harmful_looks,
        safe_nouns=safe_nouns,
        neighbours={name: tuple(entry["neighbours"]) for name, entry in data["categories"].items()},
    )
