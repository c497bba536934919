"""Text comparison: two prompts that read the same have one key, in any script.

Knows Unicode. Knows nothing of what a text is for.
"""

from __future__ import annotations

import hashlib
import unicodedata

_WORD = ("L", "M", "N", "S")  # general categories of what says something: letters, marks, digits, symbols and emoji
_PRESENTATION = dict.fromkeys(range(0xFE00, 0xFE10))  # variation selectors: how a character looks, not which it is


def normalise(text: str) -> str:
    """Compatibility forms folded (NFKC), case dropped, punctuation and spacing reduced to single spaces.

    Combining marks, symbols and emoji stay: in many scripts and in emoji they are what the text says.
    """
    return " ".join("".join(c if _says_something(c) else " " for c in _folded(text)).split())


def text_key(text: str) -> str:
    """The sha256 of the normalised text, 64 hex digits; of a text of punctuation alone, of that punctuation."""
    return hashlib.sha256((normalise(text) or _folded(text)).encode("utf-8", "surrogatepass")).hexdigest()


def _folded(text: str) -> str:
    # Folding case takes some letters apart again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_PRESENTATION)


def _says_something(character: str) -> bool:
    return character == "_" or unicodedata.category(character).startswith(_WORD)
