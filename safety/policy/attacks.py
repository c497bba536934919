"""Attacks that a word filter would miss: misspelling, look-alike letters, words taken apart; and filler words.

Pure text. An attack changes the words that say a prompt's concept, so that it applies to harmless prompts too. Fillers
are no attack, but the router must be robust against them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from safety.policy.prompts import Prompt

_LATIN, _CYRILLIC = "aceopxy", "\u0430\u0441\u0435\u043e\u0440\u0445\u0443"
_LOOK_ALIKE, _LATIN_LETTERS = str.maketrans(_LATIN, _CYRILLIC), str.maketrans(_CYRILLIC + "\u0456", _LATIN + "i")
LONG = 4  # letters; a shorter word is changed only where none is longer


def misspelt(words: str, rng: random.Random) -> str:
    """One word with two letters swapped, one left out, or one doubled; never its first. Single letters stay."""
    before, word, after = _one_word(words, rng)
    if len(word) == 1:
        return words
    i = rng.randrange(1, max(2, len(word) - 1))
    swapped = word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
    return before + rng.choice((swapped, word[:i] + word[i + 1 :], word[:i] + word[i - 1 :])) + after


def look_alike(words: str, rng: random.Random) -> str:
    """Letters replaced by Cyrillic ones that look the same."""
    return words.translate(_LOOK_ALIKE)


def latin_letters(words: str) -> str:
    """Cyrillic letters replaced by the Latin ones that look the same."""
    return words.translate(_LATIN_LETTERS)


def taken_apart(words: str, rng: random.Random) -> str:
    """One word in two parts, or letter by letter. Single letters stay."""
    before, word, after = _one_word(words, rng)
    if len(word) == 1:
        return words
    i = rng.randrange(1, max(2, len(word)))
    return before + rng.choice((f"{word[:i]} {word[i:]}", " ".join(word), f"{word[:i]}-{word[i:]}")) + after


def _one_word(words: str, rng: random.Random) -> tuple[str, str, str]:
    """The text before one of the long words, the word, and the text after it."""
    parts = words.split(" ")
    longest = max(map(len, parts))
    chosen = rng.choice([i for i, part in enumerate(parts) if len(part) >= min(LONG, longest)])
    before, after = parts[:chosen], parts[chosen + 1 :]
    return "".join(f"{part} " for part in before), parts[chosen], "".join(f" {part}" for part in after)


ATTACKS: Mapping[str, Callable[[str, random.Random], str]] = {
    "misspelt": misspelt,
    "look-alike letters": look_alike,
    "taken apart": taken_apart,
}


def disguised(prompt: Prompt, kind: str, rng: random.Random) -> Prompt:
    """The prompt with the words of its concept under an attack; its rewrite stays as it is."""
    said = ATTACKS[kind](prompt.said, rng)
    whole = rf"(?<!\w){re.escape(prompt.said)}(?!\w)"
    return replace(prompt, text=re.sub(whole, lambda _: said, prompt.text), said=said)


def strewn(prompt: Prompt, fillers: Sequence[str], rng: random.Random) -> Prompt:
    """The prompt with up to three fillers before it, after it, or right behind the words of its concept."""
    some = " ".join(rng.choices(fillers, k=rng.randint(1, 3)))
    behind = prompt.text.replace(prompt.said, f"{prompt.said}, {some}", 1)
    return replace(prompt, text=rng.choice((f"{some} {prompt.text}", f"{prompt.text}, {some}", behind)))
