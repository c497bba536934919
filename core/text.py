"""Text comparison: two prompts that read the same have one key, in any script.

Knows Unicode. Knows nothing of what a text is for.
"""

from __future__ import annotations

import hashlib
import unicodedata

_ATTACHED = ("L", "M", "N")  # general categories: letters, combining marks, numbers
_SYMBOLS = ("S", "Co")  # emoji among them, and characters for private use
_JOINERS = {"_", "\u200d", *map(chr, range(0xE0020, 0xE0080))}  # zero-width joiner; letters that spell flags
_PRESENTATION = dict.fromkeys(range(0xFE00, 0xFE10))  # variation selectors: how a character looks, not which it is


def normalise(text: str) -> str:
    """Words and symbols between single spaces: NFKC, case dropped, combining marks kept, no punctuation.

    A symbol beyond ASCII is a word of its own: it may be all that a text says, and it must hide no word beside it.
    """
    folded = _folded(text)
    return " ".join("".join(map(_part, folded, f"{folded[1:]} ")).split())


def text_key(text: str) -> str:
    """The sha256 of the normalised text, 64 hex digits; of a text of punctuation alone, of that punctuation."""
    return hashlib.sha256((normalise(text) or _folded(text)).encode("utf-8", "surrogatepass")).hexdigest()


def _folded(text: str) -> str:
    # Folding case takes some letters apart again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_PRESENTATION)


def _part(character: str, following: str) -> str:
    kind = unicodedata.category(character)
    if character in _JOINERS or kind.startswith(_ATTACHED) or unicodedata.category(following).startswith("M"):
        return character
    return f" {character} " if kind.startswith(_SYMBOLS) and not character.isascii() else " "
