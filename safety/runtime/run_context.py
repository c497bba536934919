"""What stays the same over the rounds of one run: prompts, validation panel, baseline.

Made once at the start. The rounds themselves are in `safety/loop.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from core.errors import BadInput
from engine.model import CATEGORY_NONE, ImageModel
from safety.collect.halfway_data import HalfwayData, draw_halfway_data
from safety.collect.router_data import RouterData, read_router_data
from safety.config import LoopConfig
from safety.gates.hygiene import refuse_shared
from safety.gates.result import GateResult
from safety.metrics.panel import ATTACK, BENIGN, LANGUAGE, NEIGHBOUR, ValidationSet
from safety.policy.attacks import ATTACKS, disguised, strewn
from safety.policy.emoji.languages import read_languages
from safety.policy.emoji.taxonomy import Taxonomy, read_taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.heldout_set import HeldOutSet
from safety.policy.prompts import PAIR, VALIDATION, Prompt, is_readable
from safety.request import ImproveRequest
from safety.runtime.baseline import Baseline, take_baseline
from safety.runtime.model_runner import ModelRunner
from safety.stopping import CAP

SYNONYMS = 0.4  # share of the prompts for the router that say a harm by another name


@dataclass(frozen=True)
class RunContext:
    """given: the operator's own prompts, and flagged ones. routed, routed_benign: what the router learns from.

    fresh: by round, new prompts for pairs by category. hygiene: G9 over all of these.
    """

    runner: ModelRunner
    config: LoopConfig
    seed: int
    taxonomy: Taxonomy
    categories: tuple[str, ...]
    given: tuple[Prompt, ...]
    fresh: Sequence[Mapping[str, Sequence[Prompt]]]
    panel: ValidationSet
    heldout: HeldOutSet
    baseline: Baseline
    routed: Mapping[str, Sequence[Prompt]]
    routed_benign: Sequence[Prompt]
    hygiene: GateResult

    @cached_property
    def contexts(self) -> RouterData:
        """What the model makes of the router's prompts; read when first asked for."""
        return read_router_data(self.runner, self.routed, self.routed_benign)

    @cached_property
    def sketches(self) -> HalfwayData:
        """How the model begins pictures of the router's prompts; drawn when first asked for."""
        return draw_halfway_data(self.runner, self.routed, self.routed_benign, self.seed)

    @property
    def practice(self) -> list[Prompt]:
        """What the edit is tuned on: the router's harmful prompts, those with a rewrite."""
        return [prompt for prompt in _all(self.routed) if prompt.safe is not None]


def prepare(runner: ModelRunner, request: ImproveRequest, config: LoopConfig) -> RunContext:
    """Write the prompts and take the baseline.

    Raises BadInput for an unknown category, a prompt the model cannot read, or one that a validation set holds.
    """
    taxonomy = read_taxonomy()
    categories = _chosen(request, taxonomy)
    for text in request.prompts or ():
        runner.model.check_prompt(text)
    writer = PromptWriter(taxonomy, random.Random(request.seed))
    panel = ValidationSet.of(_groups(writer, categories, config, request.seed), request.seed)
    retention, canaries = writer.benign(PAIR, config.retention), _canaries(writer, categories, config.canaries // 2)
    routed, routed_benign = _routed(writer, categories, taxonomy.fillers, config, request.seed)
    fresh = [
        {name: writer.harmful(name, PAIR, config.pair_prompts) for name in categories}
        for _ in range(min(request.max_rounds, CAP))
    ]
    heldout = HeldOutSet.of(taxonomy, categories, config, request.seed)
    given = _given(runner.model, request, [*panel.prompts, *heldout.prompts, *retention, *canaries])
    asked = {prompt.key for prompt in given}
    fresh = [{name: tuple(p for p in group if p.key not in asked) for name, group in one.items()} for one in fresh]
    hygiene = refuse_shared(
        {
            "validation": panel.prompts,
            "test": heldout.prompts,
            "canaries": canaries,
            # One set: what somebody asks for may also be among what the router learns from.
            "learned from": [*given, *retention, *routed_benign, *_all(routed), *chain(*map(_all, fresh))],
        }
    )
    baseline = take_baseline(runner, retention, canaries, config, request.seed)
    return RunContext(
        runner=runner,
        config=config,
        seed=request.seed,
        taxonomy=taxonomy,
        categories=categories,
        given=given,
        fresh=fresh,
        panel=panel,
        heldout=heldout,
        baseline=baseline,
        routed=routed,
        routed_benign=[*routed_benign, *retention],
        hygiene=hygiene,
    )


def _all(groups: Mapping[str, Sequence[Prompt]]) -> list[Prompt]:
    return [prompt for group in groups.values() for prompt in group]


def _chosen(request: ImproveRequest, taxonomy: Taxonomy) -> tuple[str, ...]:
    for name in request.categories or ():
        if name not in taxonomy.categories:
            raise BadInput("categories", name, f"some of {', '.join(taxonomy.categories)}")
    return request.categories or taxonomy.categories


def _given(model: ImageModel, request: ImproveRequest, held: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The operator's prompts, and what users flagged, but for what a set to measure on holds or nobody can read."""
    given = [Prompt(text, "", "", text) for text in request.prompts or ()]
    taken = {prompt.key for prompt in [*held, *given]}
    for text, category in request.flagged:
        prompt = Prompt(text, category or "", "", text)
        if prompt.key not in taken and is_readable(model, text):
            taken.add(prompt.key)
            given.append(prompt)
    return tuple(given)


def _groups(
    writer: PromptWriter, categories: Sequence[str], config: LoopConfig, seed: int
) -> list[tuple[str, Sequence[Prompt]]]:
    """The validation prompts by group; see Panel."""
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
        *((name, writer.harmful(name, VALIDATION, config.harmful)) for name in categories),
        (BENIGN, writer.benign(VALIDATION, config.benign)),
        *((NEIGHBOUR + name, writer.look_alikes(name, VALIDATION, config.look_alikes)) for name in categories),
        (f"{NEIGHBOUR}safe scenes", over_all(lambda name: writer.scenes(name, VALIDATION, half))),
        (f"{NEIGHBOUR}compositions", over_all(lambda name: writer.compositions(name, VALIDATION, half))),
        *((ATTACK + kind, prompts) for kind, prompts in attacks.items()),
        *((LANGUAGE + code, prompts) for code, prompts in languages.items()),
    ]


def _routed(
    writer: PromptWriter, categories: Sequence[str], fillers: Sequence[str], config: LoopConfig, seed: int
) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """What the router learns from: by category, and benign prompts put in the same ways and languages."""
    rng, languages = random.Random(f"routed/{seed}"), read_languages()

    def foreign(name: str, count: int) -> list[Prompt]:
        return [p for code in languages for p in writer.foreign(name, code, PAIR, count)]

    routed = {}
    for name in categories:
        plain = writer.harmful(name, PAIR, config.contexts, SYNONYMS)
        put = [disguised(p, kind, rng) for kind in ATTACKS for p in writer.harmful(name, PAIR, config.disguised)]
        abroad = foreign(name, config.foreign)
        alone = [*writer.harmful(name, PAIR, config.strewn, SYNONYMS), *foreign(name, config.foreign)]
        routed[name] = [*plain, *put, *abroad, *(strewn(p, fillers, rng) for p in alone)]
    benign = [*writer.benign(PAIR, 2 * config.contexts)]
    benign += [disguised(p, kind, rng) for kind in ATTACKS for p in writer.benign(PAIR, 2 * config.disguised)]
    alone = [*writer.benign(PAIR, 2 * config.strewn), *foreign(CATEGORY_NONE, 2 * config.foreign)]
    benign += [strewn(p, fillers, rng) for p in alone]
    benign += foreign(CATEGORY_NONE, 2 * config.foreign)
    return routed, benign


def _canaries(writer: PromptWriter, categories: Sequence[str], total: int) -> list[Prompt]:
    """About `total` harmful prompts, as many of each category."""
    each = -(-total // len(categories))
    return [prompt for name in categories for prompt in writer.harmful(name, PAIR, each)][:total]
