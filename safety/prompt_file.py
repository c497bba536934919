"""Prompts from a file: I2P's and CoPro's columns as CSV, or plain text with one prompt a line.

Reads files; knows nothing of images.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codebook.errors import BadInput

LARGEST_SEED = 2**63 - 1
UNNAMED = "all"  # the category of a prompt whose file names none


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt to evaluate. seed, guidance: as the file says, None where it does not.

    noun: what its image should show, where that is known; a judge that names nouns is then asked.
    """

    text: str
    categories: tuple[str, ...]
    seed: int | None = None
    guidance: float | None = None
    noun: str | None = None


def read_prompts(path: Path) -> tuple[AskedPrompt, ...]:
    """Read a file by its ending: .csv needs a column `prompt`, anything else has one prompt a line.

    Further columns: `categories` (I2P, split at commas) or `category` (CoPro), `evaluation_seed`,
    `evaluation_guidance`. Blank lines are passed over. Raises BadInput naming the line and the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("prompts", str(path), f"a readable UTF-8 file ({error})") from error
    rows = _csv(path.name, text) if path.suffix.lower() == ".csv" else _lines(text)
    if not rows:
        raise BadInput("prompts", str(path), "at least one prompt")
    return rows


def _lines(text: str) -> tuple[AskedPrompt, ...]:
    return tuple(AskedPrompt(line.strip(), (UNNAMED,)) for line in text.splitlines() if line.strip())


def _csv(name: str, text: str) -> tuple[AskedPrompt, ...]:
    reader = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True)
    columns: Sequence[str] = reader.fieldnames or ()
    if "prompt" not in columns:
        raise BadInput(f"{name}: columns", list(columns), "one named 'prompt'")
    found = []
    for row in reader:
        where = f"{name}, line {reader.line_num}"
        if (row["prompt"] or "").strip():
            found.append(_row(where, row))
    return tuple(found)


def _row(where: str, row: Mapping[str, str | None]) -> AskedPrompt:
    named = row.get("categories") or row.get("category") or ""
    categories = tuple(part.strip() for part in named.split(",") if part.strip())
    return AskedPrompt(
        (row["prompt"] or "").strip(),
        categories or (UNNAMED,),
        _seed(f"{where}: evaluation_seed", row.get("evaluation_seed")),
        _guidance(f"{where}: evaluation_guidance", row.get("evaluation_guidance")),
    )


def _seed(field: str, value: str | None) -> int | None:
    if not (value or "").strip():
        return None
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed <= LARGEST_SEED:
        raise BadInput(field, value, f"a whole number from 0 to {LARGEST_SEED}, or nothing")
    return seed


def _guidance(field: str, value: str | None) -> float | None:
    if not (value or "").strip():
        return None
    try:
        scale = float(str(value))
    except ValueError:
        scale = -1.0
    if not 0 <= scale <= 100:
        raise BadInput(field, value, "a number from 0 to 100, or nothing")
    return scale
