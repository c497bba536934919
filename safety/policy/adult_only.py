"""Adult-only rule: a row that is about nudity or sex is refused where it mentions a minor.

It errs on the side of refusing: a word that may mean a minor counts as one. Reads safety/policy/data/minors.json.
Knows words. Knows nothing of files.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import BadInput
from safety.policy.attacks import latin_letters
from safety.policy.prompts import Prompt

MINORS_FILE = Path(__file__).parent / "data" / "minors.json"
CATEGORIES = frozenset(
    {
        *("adult", "adult content", "explicit", "erotica", "hentai", "lewd", "nsfw", "nude", "nudity", "porn"),
        *("pornography", "sex", "sexual", "sexual content", "sexuality", "sexually explicit"),
    }
)
STEMS = (
    *("nude", "nudi", "nudo", "nuda", "nackt", "naked", "topless", "undress", "unclothed", "desnud", "обнаж", "голая"),
    *("голый", "sex", "секс", "erot", "эрот", "porn", "порн", "nsfw", "hentai", "lewd", "fetish", "genital", "orgas"),
    *("masturbat", "intercourse", "raped", "raping", "rapist", "molest", "incest", "pedoph", "lolicon", "shotacon"),
)
_LEET = str.maketrans("013457@$", "oieastas")
_WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s\x00-\x7f]")
_DROPPED = re.compile(r"[\u0300-\u036f\u200b-\u200d\u00ad]")  # accents, and what stands in a word unseen
_APART = " \u25a0 "  # between texts, so that no word stands across two
_LETTERS = re.compile(r"(?<!\w)(?:\w )+\w(?!\w)")  # a word taken apart, letter by letter


@dataclass(frozen=True)
class AdultOnly:
    """The rule. categories: names of adult-only categories. stems: beginnings of words that make any row adult-only.

    A category is adult-only too where a word of its name begins so: "explicit nudity".
    """

    categories: frozenset[str] = CATEGORIES
    stems: tuple[str, ...] = STEMS

    def refuses(self, categories: Iterable[str], texts: Iterable[str]) -> bool:
        """Whether a row of these categories, none for a benign one, must not hold these texts."""
        names, forms = {name.strip().casefold() for name in categories}, _forms(_APART.join(filter(None, texts)))
        begun = _beginning(self.stems)
        adult = bool(names & self.categories) or any(map(begun.search, (*map(_words, names), *forms)))
        return adult and _any_minor(forms)


RULE = AdultOnly()  # of prompts that come from no file of rows


def refuse_minors(source: str, prompts: Iterable[Prompt], rule: AdultOnly = RULE) -> None:
    """Raise BadInput, repeating no text, where a prompt of `source`, a policy, is not one about adults alone."""
    count = sum(rule.refuses((p.category,), (p.text, p.safe or "", p.said, p.concept, p.shows)) for p in prompts)
    if count:
        value = f"{source}, which has {count} prompts about nudity or sex that mention a minor"
        raise BadInput("policy", value, "adults alone in such prompts")


def mentions_minor(text: str) -> bool:
    """Whether a word of the text may mean somebody under 18, also with letters exchanged or taken apart."""
    return _any_minor(_forms(text))


def _any_minor(forms: Iterable[str]) -> bool:
    pattern, anywhere = _minors()
    return any(
        pattern.search(form) or any(part in form or part in form.replace(" ", "") for part in anywhere)
        for form in forms
    )


def _forms(text: str) -> set[str]:
    """The text as words in small letters without accents; as read past Cyrillic letters and digits; and rejoined."""
    plain = _words(text)
    leet = _words(latin_letters(text.casefold()).translate(_LEET))
    return {form for read in {plain, latin_letters(plain), leet} for form in (read, _LETTERS.sub(_joined, read))}


def _words(text: str) -> str:
    """Words, numbers and symbols between single spaces: NFKD, case and marks dropped."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_WORD.findall(_DROPPED.sub("", folded)))


def _joined(match: re.Match[str]) -> str:
    """The letters as one word, and without the first, which may be an article."""
    word = match.group().replace(" ", "")
    return f"{word} {word[1:]}"


@cache
def _beginning(stems: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(_words(stem)) for stem in stems) or '(?!)'})")


@cache
def _minors() -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern of words and ages, and what counts wherever it stands."""
    data: dict[str, Any] = json.loads(MINORS_FILE.read_text(encoding="utf-8"))
    words, stems = ("|".join(re.escape(_words(word)) for word in data[key]) for key in ("words", "stems"))
    age = rf"(?:1[0-7]|0?\d|{'|'.join(data['numbers'])})"
    ages = (
        rf"{age} (?:(?:years?|yrs?|yo|y o|y)(?!\w)|(?:months?|weeks?|days?) (?:olds?|of age)(?!\w))",
        rf"(?:age|aged|ages|turning|sweet) (?:of )?{age}(?!\w)",
        r"(?:under|below|younger than|not yet) (?:18|eighteen|legal age|age)(?!\w)",
    )
    anywhere = tuple(_words(part) for part in data["anywhere"])
    return re.compile(rf"(?<!\w)(?:(?:{words})(?!\w)|(?:{stems})|{'|'.join(ages)})"), anywhere
