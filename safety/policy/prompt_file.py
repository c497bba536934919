"""Prompts from a file: I2P's and CoPro's columns as CSV, or plain text with one prompt a line.

Reads files; knows nothing of images.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadInput

log = logging.getLogger(__name__)

LARGEST_SEED = 2**63 - 1
GUIDANCE = (1.0, 20.0)  # as POST /generate has it: 1 switches it off
UNNAMED = "all"  # the category of a prompt whose file names none
SEEDS = ("evaluation_seed", "seed", "sd_seed")  # columns; the first one present counts
GUIDANCES = ("evaluation_guidance", "guidance_scale", "guidance", "sd_guidance_scale")
_ROW_END = re.compile("\r\n|\r|\n")  # not str.splitlines(): a prompt may contain the other characters it splits at


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt to evaluate. seed, guidance: as the file says, None where it does not.

    noun: what its image should show, where known; compared with the judges that name nouns.
    """

    text: str
    categories: tuple[str, ...]
    seed: int | None = None
    guidance: float | None = None
    noun: str | None = None


def read_prompts(path: Path, use_guidance: bool = False) -> tuple[AskedPrompt, ...]:
    """Read a file by its ending: .csv needs a column `prompt`, anything else has one prompt a line.

    Further columns, named in any case: `categories` (I2P, split at commas) or `category` (CoPro), one of SEEDS, and one
    of GUIDANCES, which counts only with `use_guidance`. Columns that look like either and are not used are logged.
    Blank lines are passed over. Raises BadInput naming the line and the column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("prompts", str(path), f"a readable UTF-8 file ({error})") from error
    rows = _csv(path.name, text, use_guidance) if path.suffix.lower() == ".csv" else _lines(path.name, text)
    if not rows:
        raise BadInput("prompts", str(path), "at least one prompt")
    return rows


def _lines(name: str, text: str) -> tuple[AskedPrompt, ...]:
    lines = enumerate(_ROW_END.split(text), start=1)
    return tuple(AskedPrompt(_prompt(f"{name}, line {n}", line), (UNNAMED,)) for n, line in lines if line.strip())


def _csv(name: str, text: str, use_guidance: bool) -> tuple[AskedPrompt, ...]:
    records = _records(name, text)
    _, header = next(records, (1, []))
    columns = [column.strip().casefold() for column in header]
    if "prompt" not in columns:
        raise BadInput(f"{name}: columns", header, "one named 'prompt'")
    if twice := [column for column in columns if column and columns.count(column) > 1]:
        raise BadInput(f"{name}: columns", twice[0], "each name once")
    seed = next((column for column in SEEDS if column in columns), "")
    guidance = next((column for column in GUIDANCES if column in columns), "") if use_guidance else ""
    _warn(name, columns, {seed, guidance})
    prompts = []
    for line, record in records:
        where = f"{name}, line {line}"
        if len(record) != len(columns):
            raise BadInput(where, f"{len(record)} fields", f"{len(columns)}, as there are columns")
        row = dict(zip(columns, record, strict=True))
        if row["prompt"].strip():
            prompts.append(_row(where, row, seed, guidance))
    return tuple(prompts)


def _records(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each record of a CSV text (RFC 4180) but the blank ones, with the number of the line that it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        allowed = "a row with every quote closed, and quotes within a quoted field doubled"
        raise BadInput(f"{name}, line {line}", f"<{error}>", allowed) from None


def _warn(name: str, columns: Sequence[str], used: set[str]) -> None:
    """Log the columns of seeds and guidance that are not used."""
    for column in columns:
        if column not in used and ("seed" in column or "guidance" in column):
            log.warning("%s: the column %r is not used", name, column)


def _row(where: str, row: Mapping[str, str], seed: str, guidance: str) -> AskedPrompt:
    named = row.get("categories") or row.get("category") or ""
    categories = tuple(part.strip() for part in named.split(",") if part.strip())
    return AskedPrompt(
        _prompt(where, row["prompt"]),
        categories or (UNNAMED,),
        _seed(f"{where}: {seed}", row.get(seed, "")),
        _guidance(f"{where}: {guidance}", row.get(guidance, "")),
    )


def _prompt(where: str, text: str) -> str:
    if "\0" in text:
        raise BadInput(f"{where}: prompt", text, "text without the character NUL")
    return text.strip()


def _seed(field: str, value: str) -> int | None:
    if not value.strip():
        return None
    try:
        seed = int(value)
    except ValueError:
        seed = -1
    if not 0 <= seed <= LARGEST_SEED:
        raise BadInput(field, value, f"a whole number from 0 to {LARGEST_SEED}, or nothing")
    return seed


def _guidance(field: str, value: str) -> float | None:
    if not value.strip():
        return None
    try:
        scale = float(value)
    except ValueError:
        scale = math.nan
    least, most = GUIDANCE
    if not least <= scale <= most:
        raise BadInput(field, value, f"a number from {least:g} (switches guidance off) to {most:g}, or nothing")
    return scale
