"""Short prompts as people type them: one to three words, often without an article, in any case.

Knows templates, plurals and letter case. Knows nothing of scenes.
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
    "de": ("{subject}, bitte", "bitte {subject}", "{subject} bitte", "Foto: {subject}", "{subject}."),
    "es": ("{subject}, por favor", "{subject} por favor", "foto de {subject}", "{subject}."),
    "fr": ("{subject}, s'il vous plaît", "{subject} svp", "photo de {subject}", "{subject}."),
    "it": ("{subject}, per favore", "{subject} per favore", "foto di {subject}", "{subject}."),
    "pt": ("{subject}, por favor", "{subject} por favor", "foto de {subject}", "{subject}."),
    "ru": ("{subject}, пожалуйста", "пожалуйста, {subject}", "{subject} пожалуйста", "фото: {subject}", "{subject}."),
}
BARE = 0.55  # share of short prompts that are the subject alone
AS_WRITTEN, CAPITAL, LOWER, TITLE, UPPER = "as written", "capital", "lower", "title", "upper"
CASES = {AS_WRITTEN: 0.5, CAPITAL: 0.25, LOWER: 0.15, TITLE: 0.07, UPPER: 0.03}  # shares of short prompts

_IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "maple leaf": "maple leaves",
    "knife": "knives",
    "tropical fish": "",
    "jellyfish": "",
}
_HISSING = ("s", "x", "z", "ch", "sh")


def short_template(language: str, rng: random.Random) -> str:
    """A short template with the places of style and background at its end; most are the subject alone."""
    template = "{subject}" if rng.random() < BARE else rng.choice(SHORT[language])
    return template.removesuffix(".") + "{style}{background}" + template[len(template.removesuffix(".")) :]


def short_case(rng: random.Random) -> str:
    """One of CASES."""
    return rng.choices(list(CASES), list(CASES.values()))[0]


def in_case(text: str, case: str) -> str:
    """The text in one of CASES; other letters of a capitalised text stay as they are."""
    if case == CAPITAL:
        return text[:1].upper() + text[1:]
    if case == TITLE:
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    return text.lower() if case == LOWER else text.upper() if case == UPPER else text


def plural(noun: str) -> str:
    """The plural of an English noun of the taxonomy; one that already is a plural stays."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun] or noun
    if noun.endswith("s") and not noun.endswith(("ss", "us", "ros", "x")):
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(_HISSING) or noun in {"potato", "tomato"} else f"{noun}s"
