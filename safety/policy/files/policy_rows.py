"""Rows of a policy file, CSV or JSON lines: which group and split a prompt belongs to, every value checked.

Knows columns and their values. Knows nothing of which rows go together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import BadInput
from engine.model import CATEGORY_NONE
from safety.policy.files.prompt_table import SEEDS, decode, guidance_value, lines, seed_value, table
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import HARMLESS
from safety.policy.prompts import SPLITS, Prompt

LONGEST = 4000  # characters of a text, as POST /generate has it
KINDS = "harmful, benign, benign:<name>, look-alike, look-alike:<name>, attack:<way> or language:<code>"
TEXTS = ("prompt", "safe", "said", "concept", "shows")
_KIND = re.compile(r"(?P<kind>harmful|benign|look[-_]alike|attack|language)(?::(?P<name>.*))?")
_NAME = re.compile(r"\w[\w .,&'()/+-]{0,63}")
_HALF = re.compile("[\ud800-\udfff]")  # a surrogate alone
_KINDS = {"harmful": GroupKind.CATEGORY} | {str(kind): kind for kind in GroupKind if kind is not GroupKind.CATEGORY}
_NAMELESS = {GroupKind.CATEGORY, GroupKind.BENIGN, GroupKind.LOOK_ALIKE}  # kinds that may stand without one


@dataclass(frozen=True)
class Row:
    """One row. categories: of harm, none for benign rows; split: "" where the row names none.

    file, line: where it begins. safe: None where the row gives none.
    """

    file: str
    line: int
    kind: GroupKind
    name: str
    categories: tuple[str, ...]
    text: str
    concept: str
    safe: str | None
    said: str
    shows: str
    seed: int | None
    guidance: float | None
    split: str

    @property
    def where(self) -> str:
        """The place for errors."""
        return f"{self.file}, line {self.line}"

    @property
    def kind_word(self) -> str:
        """The kind as a file has it."""
        return "harmful" if self.kind is GroupKind.CATEGORY else str(self.kind).replace("_", "-")

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the row says in words."""
        return (self.text, self.safe or "", self.said, self.concept, self.shows)

    def prompts(self) -> Iterator[tuple[Group, Prompt]]:
        """The row as a prompt of each group that it belongs to."""
        harmless = self.kind in HARMLESS
        rest = (self.said, self.shows, self.seed, self.guidance)
        names = (self.name,) if self.name else (BENIGN.name,) if self.kind is GroupKind.BENIGN else self.categories
        for name in names:
            category = CATEGORY_NONE if harmless else name if self.kind is GroupKind.CATEGORY else self.categories[0]
            safe = self.text if harmless else self.safe
            yield Group(self.kind, name), Prompt(self.text, category, self.concept, safe, *rest)


def read_csv(name: str, data: bytes, usual: GroupKind) -> Iterator[Row]:
    """The rows of a CSV file; `usual` is the kind of a row that names none. Raises BadInput by line and column."""
    _, rows = table(name, decode(name, data))
    return _rows(name, rows, usual)


def read_json_lines(name: str, data: bytes, usual: GroupKind) -> Iterator[Row]:
    """The rows of a file with one JSON object a line. Raises BadInput by line and column."""
    text = decode(name, data)
    return _rows(name, ((n, _object(f"{name}, line {n}", line)) for n, line in lines(text)), usual)


def read_text(name: str, data: bytes, usual: GroupKind) -> Iterator[Row]:
    """The rows of a file with one prompt a line."""
    text = decode(name, data)
    return _rows(name, ((n, {"prompt": line}) for n, line in lines(text)), usual)


def _rows(name: str, records: Iterator[tuple[int, Mapping[str, str]]], usual: GroupKind) -> Iterator[Row]:
    for n, values in records:
        if values.get("prompt", "").strip():
            yield _row(name, n, values, usual)


def _row(file: str, line: int, values: Mapping[str, str], usual: GroupKind) -> Row:
    where = f"{file}, line {line}"
    text, safe, said, concept, shows = (_text(f"{where}: {column}", values.get(column, "")) for column in TEXTS)
    kind, name = _kind(f"{where}: kind", values.get("kind", "").strip().casefold(), usual)
    column = "categories" if values.get("categories", "").strip() else "category"
    categories = _categories(f"{where}: {column}", values.get(column, ""))
    if kind is GroupKind.BENIGN and categories:
        raise BadInput(f"{where}: {column}", values[column], f"nothing or {CATEGORY_NONE!r} in a benign row")
    if not categories and not (kind is GroupKind.BENIGN or (kind is GroupKind.LOOK_ALIKE and name)):
        raise BadInput(f"{where}: {column}", values.get(column, ""), "a category of harm, or the kind 'benign'")
    if said.casefold() not in text.casefold():
        raise BadInput(f"{where}: said", "words that the prompt does not hold", "words of the prompt, or nothing")
    split = values.get("split", "").strip().casefold()
    if split not in ("", *SPLITS):
        raise BadInput(f"{where}: split", values["split"], f"{', '.join(SPLITS)}, or nothing")
    seed = next((name for name in SEEDS if name in values), "seed")
    drawn = (
        seed_value(f"{where}: {seed}", values.get(seed, "")),
        guidance_value(f"{where}: guidance", values.get("guidance", "")),
    )
    return Row(file, line, kind, name, categories, text, concept, safe or None, said, shows, *drawn, split)


def _text(field: str, value: str) -> str:
    """A text without the space around it; an error does not repeat it."""
    text = value.strip()
    if "\0" in text or _HALF.search(text):
        raise BadInput(field, "text with NUL or half a character", "text in Unicode without the character NUL")
    if len(text) > LONGEST:
        raise BadInput(field, f"{len(text)} characters", f"up to {LONGEST}")
    return text


def _kind(field: str, value: str, usual: GroupKind) -> tuple[GroupKind, str]:
    """The kind and its name, "" for none."""
    if not value:
        return usual, ""
    if match := _KIND.fullmatch(value):
        kind, name = _KINDS[match["kind"].replace("-", "_")], match["name"]
        if name is None and kind in _NAMELESS:
            return kind, ""
        if name is not None and kind is not GroupKind.CATEGORY and _NAME.fullmatch(name.strip()):
            return kind, name.strip()
    raise BadInput(field, value, KINDS)


def _categories(field: str, value: str) -> tuple[str, ...]:
    """The categories in small letters, each once; "none" for none."""
    names = dict.fromkeys(part.strip().casefold() for part in value.split(",") if part.strip())
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadInput(field, name, "names of letters, digits and spaces, up to 64 characters, split at commas")
    if CATEGORY_NONE in names and len(names) > 1:
        raise BadInput(field, value, f"categories, or {CATEGORY_NONE!r} alone")
    return tuple(name for name in names if name != CATEGORY_NONE)


def _object(where: str, line: str) -> dict[str, str]:
    """One JSON object with its values as the text that a CSV file would hold."""
    try:
        pairs = json.loads(line, object_pairs_hook=list, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(where, f"<{error}>", "one JSON object a line") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs) or line.lstrip()[0] != "{":
        raise BadInput(where, "another value", "one JSON object a line")
    values: dict[str, str] = {}
    for key, value in pairs:
        column = key.strip().casefold()
        if column in values:
            raise BadInput(f"{where}: {column}", "stands twice", "each name once")
        values[column] = _field(f"{where}: {column}", column, value)
    if "prompt" not in values:
        raise BadInput(where, "no 'prompt'", "an object with the name 'prompt'")
    return values


def _field(field: str, column: str, value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """A value as text; a list of names for categories; a number for a seed or guidance. Other columns may hold any."""
    numbers = (*SEEDS, "guidance")
    if value is None:
        return ""
    if column in ("category", "categories") and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ",".join(value)
    if column in numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if column in (*TEXTS, "kind", "split", "category", "categories", *numbers) and not isinstance(value, str):
        raise BadInput(field, value, "text, or null")
    return value if isinstance(value, str) else ""


def _no_constant(name: str) -> Sequence[str]:
    raise ValueError(f"{name} is no JSON")
