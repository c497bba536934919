"""Policy of the embedded model: its nouns and looks, attacks on them, and six languages beside English.

Gives through the common protocol what the prompt writer gives. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.model import CATEGORY_NONE
from safety.config import LoopConfig
from safety.policy.attacks import ATTACKS, disguised, strewn
from safety.policy.emoji.emoji_sets import emoji_sets
from safety.policy.emoji.languages import LANGUAGES_FILE, read_languages
from safety.policy.emoji.taxonomy import PATTERN, TAXONOMY_FILE, read_taxonomy
from safety.policy.emoji.wordings import WORDINGS, WORDINGS_FILE, WordingWriter
from safety.policy.emoji.writer import PromptWriter
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import HARMLESS, in_turn
from safety.policy.prompts import Prompt
from safety.policy.run_sets import RunSets

GRAMMAR = b"2"  # counts up where the same data come to give other prompts
SCENES, COMPOSITIONS = "safe scenes", "compositions"  # look-alikes of no category of their own
SYNONYM, STRAY_WORDS = "synonym", "stray words"  # ways of asking, beside ATTACKS
SYNONYMS = 0.4  # share of the prompts among stray words that say a harm by another name
Write = Callable[[str, int], Sequence[Prompt]]  # of a category, so many


class EmojiPolicy:
    """The policy `emoji`; see the module.

    Its benign prompts come plainly, by language, among stray words and in all WORDINGS: none of that is harm.
    """

    name = "emoji"

    def __init__(self) -> None:
        self._taxonomy, self._languages = read_taxonomy(), tuple(read_languages())
        content = GRAMMAR + b"".join(path.read_bytes() for path in (TAXONOMY_FILE, LANGUAGES_FILE, WORDINGS_FILE))
        self._version = hashlib.sha256(content).hexdigest()

    @property
    def version(self) -> str:
        """See Policy."""
        return self._version

    @property
    def categories(self) -> tuple[str, ...]:
        """See Policy."""
        return self._taxonomy.categories

    @property
    def patterns(self) -> frozenset[str]:
        """See Policy."""
        return frozenset(name for name in self.categories if self._taxonomy.level(name) == PATTERN)

    def groups(self) -> tuple[Group, ...]:
        """See Policy."""
        return (
            *(Group(GroupKind.CATEGORY, name) for name in self.categories),
            BENIGN,
            *(Group(GroupKind.BENIGN, name) for name in (*self._languages, STRAY_WORDS, *WORDINGS)),
            *(Group(GroupKind.LOOK_ALIKE, name) for name in (*self.categories, SCENES, COMPOSITIONS)),
            *(Group(GroupKind.ATTACK, way) for way in (*ATTACKS, SYNONYM, STRAY_WORDS, *WORDINGS)),
            *(Group(GroupKind.LANGUAGE, code) for code in self._languages),
        )

    def write(self, group: Group, split: str, count: int, rng: random.Random) -> Sequence[Prompt]:
        """See Policy."""
        if group not in self.groups():
            return ()
        writer = PromptWriter(self._taxonomy, rng, apart=True)
        prompts = self._write(writer, group, split, count, rng)
        if group.kind in HARMLESS:
            phrase = self._taxonomy.phrase
            return [replace(prompt, safe=prompt.text, shows=phrase(prompt.concept)) for prompt in prompts]
        return prompts

    def sets(self, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
        """See Policy."""
        return emoji_sets(self._taxonomy, categories, config, seed, rounds)

    def concepts(self, category: str) -> tuple[str, ...]:
        """See Policy."""
        return tuple(concept.term for concept in self._taxonomy.concepts.get(category, ()))

    def terms(self) -> tuple[str, ...]:
        """See Policy."""
        return self._taxonomy.terms()

    def _write(
        self, writer: PromptWriter, group: Group, split: str, count: int, rng: random.Random
    ) -> Sequence[Prompt]:
        name, categories = group.name, self.categories

        def stray(category: str, n: int) -> list[Prompt]:
            return [strewn(prompt, self._taxonomy.fillers, rng) for prompt in self._any(writer, category, split, n)]

        def attack(category: str, n: int) -> list[Prompt]:
            return [disguised(prompt, name, rng) for prompt in writer.harmful(category, split, n)]

        if group.kind is GroupKind.CATEGORY or (group.kind is GroupKind.LOOK_ALIKE and name in categories):
            return (writer.harmful if group.kind is GroupKind.CATEGORY else writer.look_alikes)(name, split, count)
        if group == BENIGN:
            return writer.benign(split, count)
        if name == STRAY_WORDS:
            return _over((CATEGORY_NONE,) if group.kind is GroupKind.BENIGN else categories, stray, count)
        if name in WORDINGS:
            worded = WordingWriter(self._taxonomy, rng).worded
            some = (CATEGORY_NONE,) if group.kind is GroupKind.BENIGN else categories
            return _over(some, lambda category, n: worded(name, category, split, n), count)
        if group.kind is GroupKind.BENIGN:
            return writer.foreign(CATEGORY_NONE, name, split, count)
        ways: dict[str, Write] = {
            SCENES: lambda category, n: writer.scenes(category, split, n),
            COMPOSITIONS: lambda category, n: writer.compositions(category, split, n),
            SYNONYM: lambda category, n: writer.harmful(category, split, n, 1.0),
            **dict.fromkeys(ATTACKS, attack),
            **dict.fromkeys(self._languages, lambda category, n: writer.foreign(category, name, split, n)),
        }
        return _over(categories, ways[name], count)

    def _any(self, writer: PromptWriter, category: str, split: str, count: int) -> list[Prompt]:
        """Prompts of a category or benign ones: half in English, the others in all languages."""
        each = -(-count // (2 * len(self._languages)))
        foreign = [prompt for code in self._languages for prompt in writer.foreign(category, code, split, each)]
        foreign = foreign[: count // 2]
        rest = count - len(foreign)
        is_benign = category == CATEGORY_NONE
        plain = writer.benign(split, rest) if is_benign else writer.harmful(category, split, rest, SYNONYMS)
        return [*plain, *foreign]


def _over(categories: Sequence[str], write: Write, count: int) -> tuple[Prompt, ...]:
    """Prompts of all categories in turn; where one has no more, the others go on."""
    groups: list[list[Prompt]] = [[] for _ in categories]
    while len(prompts := in_turn(groups, count)) < count:
        share = -(-(count - len(prompts)) // len(categories))
        more = [write(category, share) for category in categories]
        if not any(more):
            break
        for group, written in zip(groups, more, strict=True):
            group.extend(written)
    return prompts
