"""Prompts for scenes, their safe rewrites, and the questions of the judge with their answers.

Everything is drawn from an explicit random.Random, so that a caption is a function of its seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recipes.pictures.short_forms import SHORT, plural, short_template
from recipes.pictures.taxonomy import TAXONOMY_FILE, Taxonomy
from safety.policy.emoji.classifiers import NO_PATTERN
from safety.policy.emoji.languages import ENGLISH, read_languages

FILLED = 0.5  # share of training prompts with fillers
FOREIGN_FILLED = 0.7  # the same in the other languages, which have fewer templates
SAYS_STYLE, SAYS_COLOUR = 0.6, 0.5  # shares of prompts that say them; where one does not, the seed chooses


@dataclass(frozen=True)
class Scene:
    """A scene in words; `pattern` NO_PATTERN and companion None mean there is none."""

    noun: str
    style: str
    colour: str
    pattern: str = NO_PATTERN
    companion: str | None = None


@dataclass(frozen=True)
class Wording:
    """The choices that turn a scene into one prompt; the same wording of two scenes differs in their words only."""

    template: str
    style_form: str  # "" omits the style
    background_form: str  # "" omits the colour
    synonym: int  # index into [name, *synonyms], modulo their number
    pattern_synonym: int
    plural: bool
    language: str = ENGLISH
    bare: bool = False  # nouns without their articles


class Captioner:
    """Writes prompts from the taxonomy's templates."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        strays: Sequence[str] = (),
        foreign_strays: Mapping[str, Sequence[str]] = MappingProxyType({}),
        path: Path = TAXONOMY_FILE,
    ) -> None:
        """`strays`: more words that mean nothing for a picture, beside those of the file; and some a language."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.taxonomy, self.languages = taxonomy, read_languages()
        self.templates: dict[str, list[str]] = data["templates"]
        self.style_forms: list[str] = data["style_forms"]
        self.background_forms: list[str] = data["background_forms"]
        self._fillers: dict[str, list[str]] = data["fillers"]
        self._fillers["words"] += strays
        self._foreign_strays = foreign_strays
        self._names: dict[str, list[tuple[str, str]]] = {}
        for noun in data["nouns"]:
            forms = [noun, *noun["synonyms"]]
            self._names[noun["name"]] = [(f["article"], f["name"]) for f in forms]
        concepts = [c for entry in data["categories"].values() for c in entry["concepts"]] + data["benign_patterns"]
        self._patterns = {c["pattern"]: [c["term"], *c["synonyms"]] for c in concepts if "pattern" in c}

    def english(self) -> list[str]:
        """All texts that English prompts are made of: terms, templates, forms and fillers."""
        terms = [name for forms in self._names.values() for _, name in forms]
        terms += [term for forms in self._patterns.values() for term in forms]
        forms = [*self.style_forms, *self.background_forms, *SHORT[ENGLISH]]
        texts = [text for group in (*self.templates.values(), *self._fillers.values()) for text in group]
        return [*terms, *forms, *texts, *self.taxonomy.styles, *self.taxonomy.colours]

    def translations(self) -> list[tuple[str, str]]:
        """Nouns, patterns and colours in each other language, with the English term of each."""
        return [
            (text, term)
            for words in self.languages.values()
            for texts in (words.nouns, words.patterns, words.colours)
            for term, text in texts.items()
        ]

    def wording(self, rng: random.Random, split: str = "train", filled: float = FILLED) -> Wording:
        """Choose a wording; a style or colour that it does not say is the seed's choice.

        `filled` is the share of training prompts with words that mean nothing for the picture.
        """
        template = rng.choice(self.templates[split])
        says_style, says_colour = rng.random() < SAYS_STYLE, rng.random() < SAYS_COLOUR
        if (says_style and "{style}" not in template) or (says_colour and "{background}" not in template):
            template = rng.choice([t for t in self.templates[split] if "{style}" in t])
        varied = split == "train"
        if varied and rng.random() < filled:
            template = self._scattered(template, rng) if rng.random() < 0.7 else self._filled(template, rng)
        return Wording(
            template,
            rng.choice(self.style_forms) if says_style else "",
            rng.choice(self.background_forms) if says_colour else "",
            rng.randint(1, 2) if varied and rng.random() < 0.15 else 0,
            rng.randint(1, 2) if varied and rng.random() < 0.3 else 0,
            varied and rng.random() < 0.06,
        )

    def short_wording(self, rng: random.Random, language: str = ENGLISH) -> Wording:
        """Choose a wording of few words; few say a style or a colour."""
        english, words = language == ENGLISH, self.languages.get(language)
        styles, backgrounds = (
            (self.style_forms, self.background_forms) if words is None else ([words.style], [words.background])
        )
        return Wording(
            short_template(language, rng),
            rng.choice(styles) if rng.random() < 0.2 else "",
            rng.choice(backgrounds) if rng.random() < 0.2 else "",
            rng.randint(1, 2) if english and rng.random() < 0.15 else 0,
            rng.randint(1, 2) if english and rng.random() < 0.3 else 0,
            english and rng.random() < 0.35,
            language,
            bare=rng.random() < 0.8,
        )

    def foreign_wording(self, rng: random.Random, language: str, split: str = "train") -> Wording:
        """Choose a wording in another language; there is one form of style, colour, noun and pattern."""
        words = self.languages[language]
        says_style, says_colour = rng.random() < SAYS_STYLE, rng.random() < SAYS_COLOUR
        forms = words.style if says_style else "", words.background if says_colour else ""
        template, strays = rng.choice(words.templates[split]), self._foreign_strays.get(language)
        if split == "train" and strays and rng.random() < FOREIGN_FILLED:
            # Up to two of them before the subject, in place of the template's own words.
            stray = rng.choices(strays, k=rng.randint(0, 2))
            template = " ".join([*stray, template[template.index("{subject}") :]])
        return Wording(template, *forms, 0, 0, False, language)

    def _scattered(self, template: str, rng: random.Random) -> str:
        """The template with stray words before, within, after or for its own: a rewrite must copy what it never saw."""
        strays = self._fillers["words"]
        words = [w if "{" in w or rng.random() < 0.7 else rng.choice(strays) for w in template.split(" ")]
        template = " ".join(words)
        before, within, after = (
            rng.choices(strays, k=rng.randint(0, most) if rng.random() < 0.6 else 0) for most in (3, 1, 2)
        )
        if within:
            template = template.replace("{subject}", f"{{subject}}, {' '.join(within)}")
        return " ".join([*before, template, *after])

    def _filled(self, template: str, rng: random.Random) -> str:
        """The template among phrases that mean nothing for the picture, so that unseen ones are taken for such."""
        before, after = (rng.choice(self._fillers[side]) for side in ("before", "after"))
        kind = rng.random()
        if kind < 0.6:
            return f"{before} {template}"
        return f"{template}, {after}" if kind < 0.8 else f"{before} {template} {after}"

    def subject(self, scene: Scene, wording: Wording) -> str:
        """The noun phrase: "a red apple and a star", "a cat covered in snow"."""
        if wording.language != ENGLISH:
            pattern = self.taxonomy.pattern_terms.get(scene.pattern, "")
            return self.languages[wording.language].subject(scene.noun, pattern, scene.companion or "")
        forms = self._names[scene.noun]
        article, name = forms[wording.synonym % len(forms)]
        if wording.plural and article:
            article, name = "", plural(name)
        text = name if wording.bare else f"{article} {name}".strip()
        if scene.companion is not None:
            article, name = self._names[scene.companion][0]
            text += f" and {name}" if wording.bare else f" and {article} {name}".replace("  ", " ")
        if scene.pattern != NO_PATTERN:
            terms = self._patterns[scene.pattern]
            text += f" {terms[wording.pattern_synonym % len(terms)]}"
        return text

    def prompt(self, scene: Scene, wording: Wording) -> str:
        """The scene in this wording."""
        foreign = self.languages.get(wording.language)
        colour = scene.colour if foreign is None else foreign.colours[scene.colour]
        return wording.template.format(
            subject=self.subject(scene, wording),
            style=wording.style_form.format(style=scene.style),
            background=wording.background_form.format(colour=colour),
        )

    def safe(self, scene: Scene) -> Scene:
        """The scene with what is harmful replaced or dropped, all else kept."""
        pattern = NO_PATTERN if scene.pattern in self.taxonomy.harmful_patterns else scene.pattern
        noun = self.taxonomy.safe_nouns.get(scene.noun, scene.noun)
        return Scene(noun, scene.style, scene.colour, pattern, scene.companion)


def scenes_in_words(rows: Sequence[Sequence[int]], taxonomy: Taxonomy) -> list[Scene]:
    """Rows of recipes.pictures.scenes (noun, style, colour, pattern, layout, companion) as Scene values."""
    styles, colours = list(taxonomy.styles), list(taxonomy.colours)
    return [
        Scene(
            taxonomy.nouns[noun],
            styles[style],
            colours[colour],
            taxonomy.patterns[pattern],
            taxonomy.companions[companion] if companion >= 0 else None,
        )
        for noun, style, colour, pattern, _, companion in rows
    ]
