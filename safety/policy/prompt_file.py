"""Prompts to evaluate from a file: I2P's and CoPro's columns as CSV, or plain text with one prompt a line.

Reads files; knows nothing of images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import BadInput
from safety.policy.files.prompt_table import (
    SEEDS,
    case_value,
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
CASE = "case_number"  # column of a prompt's number, as I2P has it
GUIDANCES = ("evaluation_guidance", "guidance_scale", "guidance", "sd_guidance_scale")  # the first present counts


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt to evaluate. seed, guidance: as the file says, None where it does not.

    shows: what its image should show, where known, for the judges that match. case: its number in the file, where read.
    """

    text: str
    categories: tuple[str, ...]
    seed: int | None = None
    guidance: float | None = None
    shows: str | None = None
    case: int | None = None


def read_prompts(path: Path, use_guidance: bool = False, numbered: bool = False) -> tuple[AskedPrompt, ...]:
    """Read a file by its ending: .csv needs a column `prompt`, anything else has one prompt a line.

    Further columns, named in any case: `categories` (I2P, split at commas) or `category` (CoPro), one of SEEDS, and one
    of GUIDANCES, which counts only with `use_guidance`. Columns that look like either and are not used are logged.
    Blank lines are passed over. With `numbered` each prompt has its `case`: the file's column CASE, or else its place
    among the rows, from 0. Raises BadInput naming the line and the column.
    """
    text = decode(str(path), read_bytes(path))
    is_table = path.suffix.lower() == ".csv"
    rows = _csv(path.name, text, use_guidance, numbered) if is_table else _lines(path.name, text, numbered)
    if not rows:
        raise BadInput("prompts", str(path), "at least one prompt")
    return rows


def _lines(name: str, text: str, numbered: bool) -> tuple[AskedPrompt, ...]:
    prompts = (AskedPrompt(prompt_text(f"{name}, line {n}", line), (UNNAMED,)) for n, line in lines(text))
    return tuple(replace(prompt, case=i) if numbered else prompt for i, prompt in enumerate(prompts))


def _csv(name: str, text: str, use_guidance: bool, numbered: bool) -> tuple[AskedPrompt, ...]:
    columns, rows = table(name, text)
    seed = next((column for column in SEEDS if column in columns), "")
    guidance = next((column for column in GUIDANCES if column in columns), "") if use_guidance else ""
    _warn(name, columns, {seed, guidance})
    prompts: list[AskedPrompt] = []
    lines_of: dict[int, int] = {}  # by case
    for i, (line, row) in enumerate(rows):
        if row["prompt"].strip():
            where = f"{name}, line {line}"
            prompt = _row(where, row, seed, guidance)
            if numbered:
                case = case_value(f"{where}: {CASE}", row[CASE]) if CASE in row else i
                if (first := lines_of.setdefault(case, line)) != line:
                    raise BadInput(f"{where}: {CASE}", case, f"each number once; line {first} has it")
                prompt = replace(prompt, case=case)
            prompts.append(prompt)
    return tuple(prompts)


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
        seed_value(f"{where}: {seed}", row[seed] if seed else ""),
        guidance_value(f"{where}: {guidance}", row[guidance] if guidance else ""),
    )
