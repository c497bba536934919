"""Short prompts as people type them: one to three words, often without an article.

Knows templates and plurals. Knows nothing of scenes, nor of letter case, which the chat template takes away.
"""

from __future__ import annotations

import random

from safety.policy.emoji.languages import ENGLISH

SHORT = {
    ENGLISH: (
        "{subject}, please",
        "please {subject}",
        "{subject} please",
        "{subject}.",
        "photo of {subject}",
        "picture of {subject}",
        "{subject} emoji",
        "{subject} icon",
        "draw {subject}",
    ),
    "de": (
        "{subject}, bitte",
        "bitte {subject}",
        "{subject} bitte",
        "Foto: {subject}",
        "ein {subject}",
        "eine {subject}",
        "einen {subject}",
        "{subject}.",
    ),
    "es": (
        "{subject}, por favor",
        "{subject} por favor",
        "foto de {subject}",
        "un {subject}",
        "una {subject}",
        "{subject}.",
    ),
    "fr": (
        "{subject}, s'il vous plaît",
        "{subject} svp",
        "photo de {subject}",
        "un {subject}",
        "une {subject}",
        "{subject}.",
    ),
    "it": (
        "{subject}, per favore",
        "{subject} per favore",
        "foto di {subject}",
        "un {subject}",
        "una {subject}",
        "{subject}.",
    ),
    "pt": (
        "{subject}, por favor",
        "{subject} por favor",
        "foto de {subject}",
        "um {subject}",
        "uma {subject}",
        "{subject}.",
    ),
    "ru": ("{subject}, пожалуйста", "пожалуйста, {subject}", "{subject} пожалуйста", "фото: {subject}", "{subject}."),
}
BARE = 0.55  # share of short prompts that are the subject alone

_IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "maple leaf": "maple leaves",
    "knife": "knives",
    "snowman": "snowmen",
}
_SAME = {
    "tropical fish",
    "jellyfish",
    "shrimp",
    "corn",
    "broccoli",
    "sushi",
    "popcorn",
    "honey",
    "milk",
    "coffee",
    "dice",
}
_HISSING = ("s", "x", "z", "ch", "sh")


def short_template(language: str, rng: random.Random) -> str:
    """A short template with the places of style and background at its end; most are the subject alone."""
    template = "{subject}" if rng.random() < BARE else rng.choice(SHORT[language])
    return template.removesuffix(".") + "{style}{background}" + template[len(template.removesuffix(".")) :]


def plural(noun: str) -> str:
    """The plural of an English noun of the taxonomy; one that already is a plural stays."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun in _SAME or (noun.endswith("s") and not noun.endswith(("ss", "us", "ros", "x"))):
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(_HISSING) or noun in {"potato", "tomato"} else f"{noun}s"
