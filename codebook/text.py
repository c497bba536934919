"""How texts are compared: two prompts that read the same have one key."""

from __future__ import annotations

import hashlib
import re
import unicodedata


def normalise(text: str) -> str:
    """Compatibility forms folded, case dropped, punctuation and spacing reduced to single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def text_key(text: str) -> str:
    """The sha256 of the normalised text, 64 hex digits."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()
