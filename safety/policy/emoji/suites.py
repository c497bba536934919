"""The standard suite of an evaluation: the taxonomy's test prompts, and the same harms in other wordings.

Knows prompts and the nouns that they should show. Knows nothing of images.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.model import CATEGORY_NONE
from safety.policy.attacks import ATTACKS, disguised
from safety.policy.emoji.languages import read_languages
from safety.policy.emoji.strata import STRATA, StrataWriter
from safety.policy.emoji.taxonomy import Taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.prompt_file import AskedPrompt
from safety.policy.prompts import TEST, Prompt

BEST_OF = "best of 5"
UNSEEN_STYLE = "openmoji"
SEEDS = 5


@dataclass(frozen=True)
class Size:
    """Numbers of prompts of a suite."""

    plain: int = 130  # harmful ones, a category
    other: int = 70  # a category and wording: synonyms, attacks, languages, unseen style; a stratum and its twins
    repeated: int = 25  # a category, drawn under SEEDS seeds each
    benign: int = 240
    look_alikes: int = 60  # a category
    pairs_of_objects: int = 120


def standard(taxonomy: Taxonomy, seed: int, size: Size) -> list[AskedPrompt]:
    """The prompts; their categories are "<level>", "<level>, <way>", "benign", "look-alikes", "two objects"."""
    writer, rng = PromptWriter(taxonomy, random.Random(f"suite/{seed}")), random.Random(f"attacks/{seed}")
    prompts: list[AskedPrompt] = []
    for name in taxonomy.categories:
        level = taxonomy.level(name)
        prompts += _harmful(writer.harmful(name, TEST, size.plain), level)
        prompts += _harmful(writer.harmful(name, TEST, size.other, 1.0), f"{level}, synonym")
        for kind in ATTACKS:
            attacks = [disguised(prompt, kind, rng) for prompt in writer.harmful(name, TEST, size.other)]
            prompts += _harmful(attacks, f"{level}, {kind}")
        for code in read_languages():
            prompts += _harmful(writer.foreign(name, code, TEST, size.other), f"{level}, {code}")
        more = writer.harmful(name, TEST, size.other + size.other // 4)  # some differ in their style alone
        unseen = {text: replace(prompt, text=text) for prompt in more for text in [_in_unseen_style(prompt, taxonomy)]}
        prompts += _harmful([*unseen.values()][: size.other], f"{level}, unseen style")
        repeated = writer.harmful(name, TEST, size.repeated)
        prompts += _harmful([prompt for prompt in repeated for _ in range(SEEDS)], f"{level}, {BEST_OF}")
    prompts += _benign(writer.benign(TEST, size.benign), "benign")
    for name in taxonomy.categories:
        prompts += _benign(writer.look_alikes(name, TEST, size.look_alikes), "look-alikes")
    each = size.pairs_of_objects // len(taxonomy.categories)
    for name in taxonomy.categories:
        prompts += _benign(writer.compositions(name, TEST, each), "two objects")
    for code in read_languages():
        prompts += _benign(writer.foreign(CATEGORY_NONE, code, TEST, size.other), f"benign, {code}")
    strata = StrataWriter(taxonomy, random.Random(f"strata/{seed}"))
    for stratum in STRATA:
        for name in taxonomy.categories:
            prompts += strata.harmful(stratum, name, size.other)
        prompts += strata.benign(stratum, size.other)
    return prompts


def _in_unseen_style(prompt: Prompt, taxonomy: Taxonomy) -> str:
    """The prompt's text with a style that the taxonomy does not hold, in place of its own or at the end."""
    text = re.sub(rf"\b({'|'.join(taxonomy.styles)})\b", UNSEEN_STYLE, prompt.text)
    return text if text != prompt.text else f"{text}, {UNSEEN_STYLE} style"


def _harmful(prompts: Sequence[Prompt], group: str) -> list[AskedPrompt]:
    return [AskedPrompt(prompt.text, (group,)) for prompt in prompts]


def _benign(prompts: Sequence[Prompt], group: str) -> list[AskedPrompt]:
    return [AskedPrompt(prompt.text, (group,), shows=prompt.concept) for prompt in prompts]
