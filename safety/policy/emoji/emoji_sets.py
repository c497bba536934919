"""The prompt sets of a run on the embedded model, by its prompt writer: one writer for all sets but the test's.

The order in which they are written is part of what a seed means. Knows nothing of images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.model import CATEGORY_NONE
from safety.config import LoopConfig
from safety.policy.attacks import ATTACKS, disguised, strewn
from safety.policy.emoji.languages import read_languages
from safety.policy.emoji.taxonomy import Taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.groups import BENIGN, Group
from safety.policy.prompts import PAIR, TEST, VALIDATION, Prompt
from safety.policy.run_sets import HeldOutSet, RunSets

SYNONYMS = 0.4  # share of the router's prompts that say a harm by a synonym


def emoji_sets(taxonomy: Taxonomy, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
    """Write the sets; see safety.policy.policy.Policy."""
    writer = PromptWriter(taxonomy, random.Random(seed))
    validation = _validation_groups(writer, categories, config, seed)
    retention, canaries = writer.benign(PAIR, config.retention), _canaries(writer, categories, config.canaries // 2)
    router, benign = _router_prompts(writer, categories, taxonomy.fillers, config, seed)
    pairs = [{name: writer.harmful(name, PAIR, config.pair_prompts) for name in categories} for _ in range(rounds)]
    heldout = _heldout(taxonomy, categories, config, seed)
    shown = [(group, [_shows(prompt) for prompt in prompts]) for group, prompts in validation]
    return RunSets(shown, retention, canaries, router, benign, pairs, heldout)


def _shows(prompt: Prompt) -> Prompt:
    """The prompt, asked whether its image shows its concept."""
    return replace(prompt, shows=prompt.concept)


def _heldout(taxonomy: Taxonomy, categories: Sequence[str], config: LoopConfig, seed: int) -> HeldOutSet:
    writer = PromptWriter(taxonomy, random.Random(f"test/{seed}"))
    harmful = {name: writer.harmful(name, TEST, config.test_harmful) for name in categories}
    benign = [_shows(prompt) for prompt in writer.benign(TEST, config.test_benign)]
    alike = [_shows(p) for name in categories for p in writer.look_alikes(name, TEST, config.test_look_alikes)]
    return HeldOutSet(harmful, benign, alike)


def _validation_groups(
    writer: PromptWriter, categories: Sequence[str], config: LoopConfig, seed: int
) -> list[tuple[Group, Sequence[Prompt]]]:
    """The validation prompts by group."""
    half, rng = config.look_alikes // 2, random.Random(f"validation/{seed}")

    def over_all(write: Callable[[str], Sequence[Prompt]]) -> list[Prompt]:
        return [prompt for name in categories for prompt in write(name)]

    attacks = {kind: over_all(lambda name: writer.harmful(name, VALIDATION, config.attacks)) for kind in ATTACKS}
    attacks = {kind: [disguised(prompt, kind, rng) for prompt in prompts] for kind, prompts in attacks.items()}
    attacks["synonym"] = over_all(lambda name: writer.harmful(name, VALIDATION, config.attacks, 1.0))
    languages = {
        code: over_all(lambda name, code=code: writer.foreign(name, code, VALIDATION, config.languages))  # type: ignore[misc]
        for code in read_languages()
    }
    return [
        *((Group.category(name), writer.harmful(name, VALIDATION, config.harmful)) for name in categories),
        (BENIGN, writer.benign(VALIDATION, config.benign)),
        *((Group.look_alike(name), writer.look_alikes(name, VALIDATION, config.look_alikes)) for name in categories),
        (Group.look_alike("safe scenes"), over_all(lambda name: writer.scenes(name, VALIDATION, half))),
        (Group.look_alike("compositions"), over_all(lambda name: writer.compositions(name, VALIDATION, half))),
        *((Group.attack(kind), prompts) for kind, prompts in attacks.items()),
        *((Group.language(code), prompts) for code, prompts in languages.items()),
    ]


def _router_prompts(
    writer: PromptWriter, categories: Sequence[str], fillers: Sequence[str], config: LoopConfig, seed: int
) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """The router's training prompts: harmful ones by category, and benign ones in the same wordings and languages."""
    rng, languages = random.Random(f"routed/{seed}"), read_languages()

    def foreign(name: str, count: int) -> list[Prompt]:
        return [p for code in languages for p in writer.foreign(name, code, PAIR, count)]

    harmful = {}
    for name in categories:
        plain = writer.harmful(name, PAIR, config.router_prompts, SYNONYMS)
        attacks = [disguised(p, kind, rng) for kind in ATTACKS for p in writer.harmful(name, PAIR, config.disguised)]
        abroad = foreign(name, config.foreign)
        alone = [*writer.harmful(name, PAIR, config.strewn, SYNONYMS), *foreign(name, config.foreign)]
        harmful[name] = [*plain, *attacks, *abroad, *(strewn(p, fillers, rng) for p in alone)]
    benign = [*writer.benign(PAIR, 2 * config.router_prompts)]
    benign += [disguised(p, kind, rng) for kind in ATTACKS for p in writer.benign(PAIR, 2 * config.disguised)]
    alone = [*writer.benign(PAIR, 2 * config.strewn), *foreign(CATEGORY_NONE, 2 * config.foreign)]
    benign += [strewn(p, fillers, rng) for p in alone]
    benign += foreign(CATEGORY_NONE, 2 * config.foreign)
    return harmful, benign


def _canaries(writer: PromptWriter, categories: Sequence[str], total: int) -> list[Prompt]:
    """About `total` harmful prompts, as many of each category."""
    each = -(-total // len(categories))
    return [prompt for name in categories for prompt in writer.harmful(name, PAIR, each)][:total]
