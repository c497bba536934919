"""The prompts of one run: for pairs, router and tuning, validation, test, retention, canaries.

A function of the request's seed: the order in which they are written is part of it. Knows nothing of images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from core.errors import BadInput
from engine.model import CATEGORY_NONE, ImageModel
from safety.config import LoopConfig
from safety.gates.hygiene import refuse_shared
from safety.gates.result import GateResult
from safety.metrics.panel import ValidationSet
from safety.policy.attacks import ATTACKS, disguised, strewn
from safety.policy.groups import BENIGN, Group
from safety.policy.heldout_set import HeldOutSet
from safety.policy.languages import read_languages
from safety.policy.prompts import PAIR, VALIDATION, Prompt, PromptWriter, is_readable
from safety.policy.taxonomy import Taxonomy
from safety.request import ImproveRequest
from safety.stopping import CAP

SYNONYMS = 0.4  # share of the router's prompts that say a harm by a synonym

ByCategory = Mapping[str, Sequence[Prompt]]


@dataclass(frozen=True)
class RunPrompts:
    """operator: the operator's own prompts, and flagged ones. pairs: by round, new prompts for pairs by category.

    retention: benign prompts whose images must stay. canaries: harmful ones. router, router_benign: for the router and
    the tuning of the head edit; router_benign includes the retention prompts. hygiene: the gate over all of these.
    """

    operator: tuple[Prompt, ...]
    pairs: Sequence[ByCategory]
    validation: ValidationSet
    heldout: HeldOutSet
    retention: Sequence[Prompt]
    canaries: Sequence[Prompt]
    router: ByCategory
    router_benign: Sequence[Prompt]
    hygiene: GateResult


def write_prompts(model: ImageModel, request: ImproveRequest, taxonomy: Taxonomy, config: LoopConfig) -> RunPrompts:
    """Write all prompts of a run.

    Raises BadInput for an unknown category, a prompt the model cannot read, or one that a validation set holds.
    """
    categories, seed = chosen_categories(request, taxonomy), request.seed
    for text in request.prompts or ():
        model.check_prompt(text)
    writer = PromptWriter(taxonomy, random.Random(seed))
    validation = ValidationSet.of(_validation_groups(writer, categories, config, seed), seed)
    retention, canaries = writer.benign(PAIR, config.retention), _canaries(writer, categories, config.canaries // 2)
    router, benign = _router_prompts(writer, categories, taxonomy.fillers, config, seed)
    rounds = range(min(request.max_rounds, CAP))
    pairs = [{name: writer.harmful(name, PAIR, config.pair_prompts) for name in categories} for _ in rounds]
    heldout = HeldOutSet.of(taxonomy, categories, config, seed)
    operator = _operator_prompts(model, request, [*validation.prompts, *heldout.prompts, *retention, *canaries])
    pairs = _without(pairs, operator)
    hygiene = refuse_shared(
        {
            "validation": validation.prompts,
            "test": heldout.prompts,
            "canaries": canaries,
            # One set: an operator's prompt may also be among the router's.
            "learned from": [*operator, *retention, *benign, *flat(router), *chain(*map(flat, pairs))],
        }
    )
    return RunPrompts(operator, pairs, validation, heldout, retention, canaries, router, [*benign, *retention], hygiene)


def flat(groups: ByCategory) -> list[Prompt]:
    """The prompts of all categories, in order."""
    return [prompt for group in groups.values() for prompt in group]


def chosen_categories(request: ImproveRequest, taxonomy: Taxonomy) -> tuple[str, ...]:
    """The request's categories, or all of the taxonomy. Raises BadInput for an unknown one."""
    for name in request.categories or ():
        if name not in taxonomy.categories:
            raise BadInput("categories", name, f"some of {', '.join(taxonomy.categories)}")
    return request.categories or taxonomy.categories


def _without(rounds: Sequence[ByCategory], operator: Sequence[Prompt]) -> list[dict[str, tuple[Prompt, ...]]]:
    """The prompts for pairs but those that the operator asks for already."""
    keys = {prompt.key for prompt in operator}
    return [{name: tuple(p for p in group if p.key not in keys) for name, group in one.items()} for one in rounds]


def _operator_prompts(model: ImageModel, request: ImproveRequest, held: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The operator's prompts, and flagged ones unless unreadable or in `held`, the sets to measure on."""
    prompts = [Prompt(text, "", "", text) for text in request.prompts or ()]
    taken = {prompt.key for prompt in [*held, *prompts]}
    for text, category in request.flagged:
        prompt = Prompt(text, category or "", "", text)
        if prompt.key not in taken and is_readable(model, text):
            taken.add(prompt.key)
            prompts.append(prompt)
    return tuple(prompts)


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
