"""Fields of prompt files: strict CSV tables (RFC 4180), and the values that a column may hold.

Knows text and its lines. Knows nothing of what a table is for.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from core.errors import BadInput

LARGEST_SEED = 2**63 - 1
GUIDANCE = (1.0, 20.0)  # as POST /generate has it: 1 switches it off
SEEDS = ("evaluation_seed", "seed", "sd_seed")  # columns, the first that is there counts
_ROW_END = re.compile("\r\n|\r|\n")  # and no other: a prompt may hold what str.splitlines() takes for one


def decode(name: str, data: bytes) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises BadInput naming the file."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("prompts", name, f"a readable UTF-8 file ({error})") from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises BadInput naming it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput("prompts", str(path), f"a readable UTF-8 file ({error})") from error


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line of a text that is not blank, with its number."""
    return ((n, line) for n, line in enumerate(_ROW_END.split(text), start=1) if line.strip())


def table(name: str, text: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The columns of a CSV text, in small letters, and each row by column with the number of its first line.

    Raises BadInput naming the line where a column `prompt` is missing, a column stands twice, or a row has a field too
    many or too few.
    """
    rows = _records(name, text)
    _, header = next(rows, (1, []))
    columns = [column.strip().casefold() for column in header]
    if "prompt" not in columns:
        raise BadInput(f"{name}: columns", header, "one named 'prompt'")
    if twice := [column for column in columns if column and columns.count(column) > 1]:
        raise BadInput(f"{name}: columns", twice[0], "each name once")
    return columns, _by_column(name, columns, rows)


def _by_column(
    name: str, columns: list[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, record in rows:
        if len(record) != len(columns):
            raise BadInput(f"{name}, line {line}", f"{len(record)} fields", f"{len(columns)}, as there are columns")
        yield line, dict(zip(columns, record, strict=True))


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


def prompt_text(where: str, text: str) -> str:
    """A prompt without the space around it. Raises BadInput where it holds NUL."""
    if "\0" in text:
        raise BadInput(f"{where}: prompt", text, "text without the character NUL")
    return text.strip()


def seed_value(field: str, value: str) -> int | None:
    """A seed, or None for nothing. Raises BadInput naming `field` where it is out of range."""
    if not value.strip():
        return None
    try:
        seed = int(value)
    except ValueError:
        seed = -1
    if not 0 <= seed <= LARGEST_SEED:
        raise BadInput(field, value, f"a whole number from 0 to {LARGEST_SEED}, or nothing")
    return seed


def case_value(field: str, value: str) -> int:
    """The number of a case. Raises BadInput naming `field` where it is none or out of range."""
    try:
        case = int(value)
    except ValueError:
        case = -1
    if not 0 <= case <= LARGEST_SEED:
        raise BadInput(field, value, f"a whole number from 0 to {LARGEST_SEED}")
    return case


def guidance_value(field: str, value: str) -> float | None:
    """A guidance scale, or None for nothing. Raises BadInput naming `field` where it is out of range."""
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
