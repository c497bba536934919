"""Policy from a file: an operator's own prompts, CSV or JSON lines, in groups and disjoint splits.

Knows rows. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from core.errors import BadInput
from core.text import normalise, text_key
from safety.config import LoopConfig
from safety.policy.adult_only import AdultOnly
from safety.policy.files.policy_rows import Row, read_csv, read_json_lines, read_text
from safety.policy.files.prompt_table import read_bytes
from safety.policy.groups import Group, GroupKind
from safety.policy.policy import HARMLESS, in_turn
from safety.policy.prompts import PAIR, SPLITS, TEST, VALIDATION, Prompt
from safety.policy.run_sets import RunSets
from safety.policy.sets_writer import write_sets

SUFFIXES = (".csv", ".jsonl")
BENIGN_SUFFIXES = (".benign.csv", ".benign.txt")  # of a second file beside it
SHARES = ((PAIR, 60), (VALIDATION, 80), (TEST, 100))  # per cent, summed up, of rows whose file names no split
_READERS = {".csv": read_csv, ".jsonl": read_json_lines, ".txt": read_text}
_SHOWN_LINES = 20
_APART = " \u25a0 "  # between texts, so that no term stands across two


class FilePolicy:
    """The prompts of a file; see docs/how-to/write-a-policy.md for its columns."""

    def __init__(self, name: str, rows: Iterable[Row]) -> None:
        """Sort the rows into groups and splits.

        Raises BadInput naming line and column where a prompt stands in two splits, or as harmful and as harmless, and
        where no row is harmful.
        """
        self._name = name
        self._prompts: dict[Group, dict[str, dict[str, Prompt]]] = {}
        first: dict[str, tuple[Row, str]] = {}
        for row in rows:
            for group, prompt in row.prompts():
                before, split = first.setdefault(prompt.key, (row, row.split or _share(row)))
                _refuse_contradiction(before, row, split)
                splits = self._prompts.setdefault(group, {split: {} for split in SPLITS})
                splits[split].setdefault(prompt.key, prompt)
        if not self.categories:
            raise BadInput(f"{name}: categories", "no harmful row", "at least one row of the kind 'harmful'")
        content = [[str(g), s, *_fields(p)] for g, by in self._prompts.items() for s in by for p in by[s].values()]
        self._version = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path, benign: Path | None = None, adult_only: AdultOnly | None = None) -> FilePolicy:
        """Read a .csv or .jsonl file, with `benign` (.csv or .txt) or what stands beside it under BENIGN_SUFFIXES.

        Raises BadInput naming line and column of a row that is refused, and every line that breaks the adult-only rule.
        """
        # The first suffix again: its file may have taken the other's place in between.
        beside = (path.with_name(path.stem + suffix) for suffix in (*BENIGN_SUFFIXES, BENIGN_SUFFIXES[0]))
        benign = benign or next((file for file in beside if file.exists()), None)
        return cls.parse(path.stem, path.suffix.lower(), read_bytes(path), benign, adult_only)

    @classmethod
    def parse(
        cls,
        name: str,
        suffix: str,
        data: bytes,
        benign: Path | None = None,
        adult_only: AdultOnly | None = None,
        benign_data: bytes | None = None,
    ) -> FilePolicy:
        """The policy in the bytes of a file of this suffix; see `read`. benign_data: in place of the file `benign`."""
        if suffix not in SUFFIXES:
            raise BadInput("policy", name + suffix, f"a file whose name ends in {' or '.join(SUFFIXES)}")
        rule = adult_only or AdultOnly()
        rows = checked(_READERS[suffix](name + suffix, data, GroupKind.CATEGORY), rule)
        if benign is not None:
            if benign.suffix.lower() not in (".csv", ".txt"):
                raise BadInput("benign prompts", benign.name, "a file whose name ends in .csv or .txt")
            reader = _READERS[benign.suffix.lower()]
            benign_bytes = read_bytes(benign) if benign_data is None else benign_data
            extra = checked(reader(benign.name, benign_bytes, GroupKind.BENIGN), rule)
            if row := next((row for row in extra if row.kind is not GroupKind.BENIGN), None):
                raise BadInput(f"{row.where}: kind", row.kind_word, "benign rows alone")
            rows += extra
        return cls(name, rows)

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self._name

    @property
    def version(self) -> str:
        """A hash of all prompts: of what is read, not of how the file writes it."""
        return self._version

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of harmful rows, in the order of the file."""
        return tuple(group.name for group in self._prompts if group.kind is GroupKind.CATEGORY)

    @property
    def patterns(self) -> frozenset[str]:
        """See Policy: unknown here."""
        return frozenset()

    def groups(self) -> tuple[Group, ...]:
        """See Policy: in the order of the file."""
        return tuple(self._prompts)

    def counts(self) -> Mapping[Group, Mapping[str, int]]:
        """Prompts by group and split."""
        return {g: {split: len(prompts) for split, prompts in by.items()} for g, by in self._prompts.items()}

    def write(self, group: Group, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        """See Policy: rows in random order, categories and concepts in turn."""
        by_category: dict[str, dict[str, list[Prompt]]] = {}
        for prompt in self._prompts.get(group, {}).get(split, {}).values():
            by_category.setdefault(prompt.category, {}).setdefault(prompt.concept, []).append(prompt)
        mixed = []
        for concepts in by_category.values():
            shuffled = [rng.sample(prompts, len(prompts)) for prompts in concepts.values()]
            mixed.append(in_turn(rng.sample(shuffled, len(shuffled)), count))
        return in_turn(mixed, count)

    def sets(self, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
        """See Policy."""
        return write_sets(self, categories, config, seed, rounds)

    def concepts(self, category: str) -> tuple[str, ...]:
        """See Policy."""
        named = dict.fromkeys(prompt.concept for prompt in self._plain(category))
        return tuple(concept for concept in named if concept)

    def terms(self) -> tuple[str, ...]:
        """The concepts of harmful rows, or else what says them, that a prompt holds and no rewrite of the file does."""
        prompts = [prompt for category in self.categories for prompt in self._plain(category)]
        held: dict[str, None] = {}
        for prompt in prompts:
            text = f" {normalise(prompt.text)} "
            said = (words for words in (prompt.concept, prompt.said) if words and f" {normalise(words)} " in text)
            held.update(dict.fromkeys(islice(said, 1)))
        rewrites = f" {normalise(_APART.join({prompt.safe: None for prompt in prompts if prompt.safe}))} "
        return tuple(term for term in held if f" {normalise(term)} " not in rewrites)

    def _plain(self, category: str) -> list[Prompt]:
        by = self._prompts.get(Group(GroupKind.CATEGORY, category), {})
        return [prompt for split in by.values() for prompt in split.values()]


def checked(rows: Iterable[Row], rule: AdultOnly) -> list[Row]:
    """The rows. Raises BadInput naming every line that the adult-only rule refuses, and repeating none."""
    read = list(rows)
    refused = [row for row in read if rule.refuses((*row.categories, row.name), row.texts)]
    if refused:
        places = ", ".join(str(row.line) for row in refused[:_SHOWN_LINES])
        more = f" and {len(refused) - _SHOWN_LINES} more" if len(refused) > _SHOWN_LINES else ""
        value = f"<a mention of a minor in a row about nudity or sex: lines {places}{more}>"
        raise BadInput(f"{refused[0].where}: prompt", value, "adults alone in such rows")
    return read


def _share(row: Row) -> str:
    """The split of a row that names none: by a hash of its concept, or of its text, the same in every file."""
    place = int(text_key(row.concept or row.text)[:8], 16) % 100
    return next(split for split, end in SHARES if place < end)


def _fields(prompt: Prompt) -> tuple[str | float | None, ...]:
    rest = (prompt.said, prompt.shows, prompt.seed, prompt.guidance)
    return (prompt.text, prompt.category, prompt.concept, prompt.safe, *rest)


def _refuse_contradiction(before: Row, row: Row, split: str) -> None:
    """Raises BadInput where the same prompt stands in another split, or once as harmful and once as harmless."""
    if row.split not in ("", split):
        raise BadInput(f"{row.where}: split", row.split, f"{split!r}: the same prompt stands in {before.where}")
    if (row.kind in HARMLESS) != (before.kind in HARMLESS):
        raise BadInput(f"{row.where}: kind", row.kind_word, f"{before.kind_word!r}, as {before.where} has it")
