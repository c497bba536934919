"""Prompts to evaluate from a file: I2P's and CoPro's columns as CSV, or plain text with one prompt a line.

Reads files; knows nothing of images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadInput
from safety.policy.prompt_table import (
    SEEDS,
    decode,
    guidance_value,
    lines,
    prompt_text,
    read_bytes,
    seed_value,
    table,
)

log = logging.getLogger(__name__)

UNNAMED = "all"  # the category of a prompt whose file names none
GUIDANCES = ("evaluation_guidance", "guidance_scale", "guidance", "sd_guidance_scale")  # the first present counts


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt to evaluate. seed, guidance: as the file says, None where it does not.

    shows: what its image should show, where known, for the judges that match.
    """

    text: str
    categories: tuple[str, ...]
    seed: int | None = None
    guidance: float | None = None
    shows: str | None = None


def read_prompts(path: Path, use_guidance: bool = False) -> tuple[AskedPrompt, ...]:
    """Read a file by its ending: .csv needs a column `prompt`, anything else has one prompt a line.

    Further columns, named in any case: `categories` (I2P, split at commas) or `category` (CoPro), one of SEEDS, and one
    of GUIDANCES, which counts only with `use_guidance`. Columns that look like either and are not used are logged.
    Blank lines are passed over. Raises BadInput naming the line and the column.
    """
    text = decode(str(path), read_bytes(path))
    rows = _csv(path.name, text, use_guidance) if path.suffix.lower() == ".csv" else _lines(path.name, text)
    if not rows:
        raise BadInput("prompts", str(path), "at least one prompt")
    return rows


def _lines(name: str, text: str) -> tuple[AskedPrompt, ...]:
    return tuple(AskedPrompt(prompt_text(f"{name}, line {n}", line), (UNNAMED,)) for n, line in lines(text))


def _csv(name: str, text: str, use_guidance: bool) -> tuple[AskedPrompt, ...]:
    columns, rows = table(name, text)
    seed = next((column for column in SEEDS if column in columns), "")
    guidance = next((column for column in GUIDANCES if column in columns), "") if use_guidance else ""
    _warn(name, columns, {seed, guidance})
    return tuple(_row(f"{name}, line {line}", row, seed, guidance) for line, row in rows if row["prompt"].strip())


def _warn(name: str, columns: Sequence[str], used: set[str]) -> None:
    """Log the columns of seeds and guidance that are not used."""
    for column in columns:
        if column not in used and ("seed" in column or "guidance" in column):
            log.warning("%s: the column %r is not used", name, column)


def _row(where: str, row: Mapping[str, str], seed: str, guidance: str) -> AskedPrompt:
    named = row.get("categories") or row.get("category") or ""
    categories = tuple(part.strip() for part in named.split(",") if part.strip())
    return AskedPrompt(
        prompt_text(where, row["prompt"]),
        categories or (UNNAMED,),
        seed_value(f"{where}: {seed}", row.get(seed, "")),
        guidance_value(f"{where}: {guidance}", row.get(guidance, "")),
    )
