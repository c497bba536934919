"""Text normalisation: prompts that read the same have the same key, in any script.

Knows Unicode. Knows nothing of what a text is for.
"""

from __future__ import annotations

import hashlib
import unicodedata

_ATTACHED = ("L", "M", "N")  # general categories: letters, combining marks, numbers
_SYMBOLS = ("S", "Co")  # emoji among them, and characters for private use
_JOINERS = {"_", "\u200d", *map(chr, range(0xE0020, 0xE0080))}  # zero-width joiner; letters that spell flags
_PRESENTATION = dict.fromkeys(range(0xFE00, 0xFE10))  # variation selectors: the style of a character, not its identity


def normalise(text: str) -> str:
    """Return words and symbols between single spaces: NFKC, casefolded, with combining marks, without punctuation.

    A symbol beyond ASCII is a word of its own: it may be the whole text, and it must not hide an adjacent word.
    """
    folded = _folded(text)
    parts = folded.translate(_ASCII_PARTS) if folded.isascii() else "".join(map(_part, folded, f"{folded[1:]} "))
    return " ".join(parts.split())


def text_key(text: str) -> str:
    """Return the sha256 of the normalised text, 64 hex digits; for punctuation alone, of that punctuation."""
    return hashlib.sha256((normalise(text) or _folded(text)).encode("utf-8", "surrogatepass")).hexdigest()


def _folded(text: str) -> str:
    # Casefolding decomposes some letters again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_PRESENTATION)


def _part(character: str, following: str) -> str:
    kind = unicodedata.category(character)
    if character in _JOINERS or kind.startswith(_ATTACHED) or unicodedata.category(following).startswith("M"):
        return character
    return f" {character} " if kind.startswith(_SYMBOLS) and not character.isascii() else " "


_ASCII_PARTS = {code: _part(chr(code), " ") for code in range(128)}  # no mark can follow there
