"""Open policy: everyday captions for models of any kind, harm named in neutral words, from one small grammar.

Violence, weapons, substances, nudity of adults and hate symbols. English only: it has no languages group.
Reads safety/policy/data/open.json. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.model import CATEGORY_NONE
from safety.config import LoopConfig
from safety.policy.attacks import ATTACKS, disguised
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import in_turn
from safety.policy.prompts import Prompt
from safety.policy.run_sets import RunSets
from safety.policy.sets_writer import write_sets

OPEN_FILE = Path(__file__).parent / "data" / "open.json"
GRAMMAR = b"1"  # counts up where the same data come to give other prompts


class OpenPolicy:
    """The policy `open`; see the module. A sentence is a subject in one of its split's forms, at one of its places."""

    name = "open"

    def __init__(self, path: Path = OPEN_FILE) -> None:
        """Read the data file."""
        content = path.read_bytes()
        data: dict[str, Any] = json.loads(content)
        self._splits: dict[str, dict[str, list[str]]] = data["splits"]
        self._categories: dict[str, dict[str, Any]] = data["categories"]
        self._benign: dict[str, list[str]] = data["benign"]
        self._version = hashlib.sha256(GRAMMAR + content).hexdigest()

    @property
    def version(self) -> str:
        """See Policy."""
        return self._version

    @property
    def categories(self) -> tuple[str, ...]:
        """See Policy."""
        return tuple(self._categories)

    @property
    def patterns(self) -> frozenset[str]:
        """See Policy: unknown here."""
        return frozenset()

    def groups(self) -> tuple[Group, ...]:
        """See Policy."""
        by_category = [[Group(kind, c) for c in self.categories] for kind in (GroupKind.CATEGORY, GroupKind.LOOK_ALIKE)]
        return (*by_category[0], BENIGN, *by_category[1], *(Group(GroupKind.ATTACK, way) for way in ATTACKS))

    def write(self, group: Group, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        """See Policy."""
        if group not in self.groups():
            return ()
        if group.kind is GroupKind.CATEGORY:
            return self._harmful(group.name, split, count, rng)
        if group.kind is GroupKind.LOOK_ALIKE:
            subjects = self._categories[group.name]["look_alikes"]
            return in_turn([self._harmless(subject, split, rng) for subject in subjects], count)
        if group.kind is GroupKind.BENIGN:
            return self._written_benign(split, count, rng)
        plain = [self._harmful(category, split, count, rng) for category in self.categories]
        return in_turn([self._disguised(prompts, group.name, rng) for prompts in plain], count)

    def sets(self, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
        """See Policy."""
        return write_sets(self, categories, config, seed, rounds)

    def concepts(self, category: str) -> tuple[str, ...]:
        """The terms of a category."""
        return tuple(term for term, _ in self._categories.get(category, {"terms": ()})["terms"])

    def terms(self) -> tuple[str, ...]:
        """The harmful words of all categories."""
        return tuple(word for category in self._categories.values() for word in category["words"])

    def _sentences(self, split: str, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Every form of the split at every place, in random order."""
        forms, places = self._splits[split]["forms"], self._splits[split]["places"]
        both = [(form, place) for form in forms for place in places]
        rng.shuffle(both)
        return iter(both)

    def _harmful(self, category: str, split: str, count: int, rng: random.Random) -> tuple[Prompt, ...]:
        """Each term in every sentence; terms in turn."""

        def prompts(term: str, safe: str, sentences: Iterator[tuple[str, str]]) -> Iterator[Prompt]:
            for form, place in sentences:
                texts = [form.format(subject=subject, place=place) for subject in (term, safe)]
                yield Prompt(texts[0], category, term, texts[1], term, term)

        terms = self._categories[category]["terms"]
        return in_turn([prompts(term, safe, self._sentences(split, rng)) for term, safe in terms], count)

    def _harmless(self, subject: str, split: str, rng: random.Random) -> Iterator[Prompt]:
        for form, place in self._sentences(split, rng):
            text = form.format(subject=subject, place=place)
            yield Prompt(text, CATEGORY_NONE, subject, text, subject, subject)

    def _written_benign(self, split: str, count: int, rng: random.Random) -> tuple[Prompt, ...]:
        """Subjects alone, and as many with a companion."""
        subjects, companions = self._benign["subjects"], self._benign["companions"]
        pairs = [f"{subject} and {companion}" for subject in subjects for companion in companions]
        shuffled = (rng.sample(alone, len(alone)) for alone in (subjects, pairs))
        both = [in_turn([self._harmless(subject, split, rng) for subject in group], count) for group in shuffled]
        return in_turn(both, count)

    def _disguised(self, prompts: Sequence[Prompt], way: str, rng: random.Random) -> Iterator[Prompt]:
        """The prompts with the harmful word of their term put another way, where that changes it."""
        for prompt in prompts:
            word = self._word(prompt.concept)
            other = disguised(replace(prompt, said=word), way, rng)
            if other.key != prompt.key:
                yield replace(other, said=prompt.concept.replace(word, other.said))

    def _word(self, term: str) -> str:
        """The longest harmful word in a term, as it stands there; the term itself where it holds none."""
        return max((m.group() for m in self._harmful_words.finditer(term)), key=len, default=term)

    @cached_property
    def _harmful_words(self) -> re.Pattern[str]:
        longest_first = sorted(self.terms(), key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
