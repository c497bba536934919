"""Tokenizer of VILA-U: Llama's, from tokenizer.json or from the tokenizer.model that is published, and its own tokens.

Knows the format of SentencePiece models as far as Llama's needs it. Knows nothing of prompts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from core.errors import BadModel
from engine.families.checkpoints import from_folder

MARKS = ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>")  # the last words of the vocabulary


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  (transformers')
    """Load the tokenizer of a folder. Raises BadModel."""
    if (folder / "tokenizer.json").exists():
        return from_folder(AutoTokenizer, folder)
    file = folder / "tokenizer.model"
    try:
        pieces = read_pieces(file.read_bytes())
        more: dict[str, int] = json.loads((folder / "added_tokens.json").read_text("utf-8"))
    except FileNotFoundError as missing:
        raise BadModel(f"{folder}: holds neither tokenizer.json nor {Path(missing.filename).name}") from None
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise BadModel(f"{file}: is no tokenizer: {error}") from error
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, dict(pieces)))
    tokenizer.add_tokens([token for token, _ in sorted(more.items(), key=lambda item: item[1])], special_tokens=True)
    return tokenizer


def read_pieces(model: bytes) -> list[tuple[str, float]]:
    """Return the pieces of a SentencePiece model (a protocol buffer), by their ids, with their scores."""
    pieces = []
    for field, value in _fields(model):
        if field == 1:  # a piece: its text is field 1, its score field 2
            parts = dict(_fields(value))
            pieces.append((parts[1].decode("utf-8"), struct.unpack("<f", parts[2])[0]))
    if not pieces:
        raise ValueError("it has no pieces")
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that are bytes, by number; numbers are left out."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = {1: 8, 5: 4}[kind]
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"it ends within a field at byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and the byte after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
