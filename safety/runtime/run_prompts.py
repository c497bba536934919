"""The prompts of one run: the sets of its policy, the operator's own prompts and flagged ones, disjoint by hash.

A function of policy, request and sizes. Knows nothing of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from core.errors import BadInput
from engine.model import ImageModel
from safety.config import LoopConfig
from safety.gates.hygiene import refuse_shared
from safety.gates.result import GateResult
from safety.metrics.panel import ValidationSet
from safety.policy.adult_only import RULE, refuse_minors
from safety.policy.plan import Plan, plan_of
from safety.policy.policy import Policy, refuse_unable
from safety.policy.prompts import PAIR, VALIDATION, Prompt, is_readable
from safety.policy.run_sets import ByCategory, HeldOutSet, RunSets
from safety.request import ImproveRequest
from safety.stopping import CAP

FEWEST = 6  # prompts of a concept: two for each part of the router's
FEWEST_BENIGN = 16  # prompts, for the limits of degenerate images to mean anything


@dataclass(frozen=True)
class RunPrompts:
    """operator: the operator's own prompts, and flagged ones. pairs: by round, new prompts for pairs by category.

    retention: benign prompts whose images must stay. canaries: harmful ones. router, router_benign: for the router and
    the tuning of the head edit; router_benign includes the retention prompts. hygiene: the gate over all of these.
    plan: of a run with these prompts.
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
    plan: Plan

    @cached_property
    def held_keys(self) -> frozenset[str]:
        """Keys of the prompts that the run measures on."""
        return _keys([*self.validation.prompts, *self.heldout.prompts, *self.canaries])

    @cached_property
    def learned_keys(self) -> frozenset[str]:
        """Keys of the prompts that the run learns from before it mines any."""
        return _keys(_learned(self.operator, self.router_benign, self.router, self.pairs))


def write_prompts(model: ImageModel, request: ImproveRequest, policy: Policy, config: LoopConfig) -> RunPrompts:
    """Write all prompts of a run.

    Raises BadInput for an unknown category, a prompt the model cannot read, or one that a validation set holds, where
    the policy has too few prompts to begin with, and for what the model is not able to.
    """
    categories, seed = chosen_categories(request, policy), request.seed
    refuse_unable(model.facts, policy, categories, request.prompts or ())
    refuse_minors("the request", [Prompt(text, "", "", None) for text in request.prompts or ()])
    for text in request.prompts or ():
        model.check_prompt(text)
    sets = policy.sets(categories, config, seed, min(request.max_rounds, CAP))
    refuse_minors(policy.name, sets.prompts)
    _refuse_empty(policy, categories, sets)
    validation = ValidationSet.of(sets.validation, seed)
    held = [*validation.prompts, *sets.heldout.prompts, *sets.retention, *sets.canaries]
    operator = _operator_prompts(model, request, held)
    pairs = _without(sets.pairs, operator)
    hygiene = refuse_shared(
        {
            "validation": validation.prompts,
            "test": sets.heldout.prompts,
            "canaries": sets.canaries,
            # One set: an operator's prompt may also be among the router's.
            "learned from": [*_learned(operator, sets.router_benign, sets.router, pairs), *sets.retention],
        }
    )
    return RunPrompts(
        operator=operator,
        pairs=pairs,
        validation=validation,
        heldout=sets.heldout,
        retention=sets.retention,
        canaries=sets.canaries,
        router={name: _by_concept(prompts, config) for name, prompts in sets.router.items()},
        router_benign=[*sets.router_benign, *sets.retention],
        hygiene=hygiene,
        plan=plan_of(sets, config, policy.patterns if "pixel" in model.facts.edits else (), len(operator)),
    )


def _learned(
    operator: Sequence[Prompt], benign: Sequence[Prompt], router: ByCategory, pairs: Sequence[ByCategory]
) -> list[Prompt]:
    """The prompts of pairs and router."""
    return [*operator, *benign, *flat(router), *chain(*map(flat, pairs))]


def _keys(prompts: Sequence[Prompt]) -> frozenset[str]:
    return frozenset(prompt.key for prompt in prompts)


def _refuse_empty(policy: Policy, categories: Sequence[str], sets: RunSets) -> None:
    """Raise BadInput where a category has nothing to learn from or to measure on, and where benign prompts lack."""
    measured = {str(group): prompts for group, prompts in sets.validation if group.harmful}
    for name in categories:
        for split, prompts in ((PAIR, sets.pairs[0][name]), (VALIDATION, measured.get(name))):
            if not prompts:
                allowed = f"a policy with harmful prompts of the split {split!r} for each category of the request"
                raise BadInput("policy", f"{policy.name}, which has none for {name}", allowed)
    if len(sets.retention) < FEWEST_BENIGN:
        short = f"{policy.name}, which has {len(sets.retention)} benign prompts of the split {PAIR!r}"
        raise BadInput("policy", short, f"one with {FEWEST_BENIGN} or more")


def _by_concept(prompts: Sequence[Prompt], config: LoopConfig) -> list[Prompt]:
    """The prompts, with "" for the concepts that are too few to have an expert of their own."""
    counts = Counter(prompt.concept for prompt in prompts)
    few = {name for name, count in counts.items() if not config.by_concept or count < FEWEST}
    return [replace(prompt, concept="") if prompt.concept in few else prompt for prompt in prompts]


def flat(groups: ByCategory) -> list[Prompt]:
    """The prompts of all categories, in order."""
    return [prompt for group in groups.values() for prompt in group]


def chosen_categories(request: ImproveRequest, policy: Policy) -> tuple[str, ...]:
    """The request's categories, or all of the policy. Raises BadInput for an unknown one."""
    for name in request.categories or ():
        if name not in policy.categories:
            raise BadInput("categories", name, f"some of {', '.join(policy.categories)}")
    return request.categories or policy.categories


def _without(rounds: Sequence[ByCategory], operator: Sequence[Prompt]) -> list[dict[str, tuple[Prompt, ...]]]:
    """The prompts for pairs but those that the operator asks for already."""
    keys = {prompt.key for prompt in operator}
    return [{name: tuple(p for p in group if p.key not in keys) for name, group in one.items()} for one in rounds]


def _operator_prompts(model: ImageModel, request: ImproveRequest, held: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The operator's prompts, and flagged ones unless unreadable, not of adults alone, or in `held`: measured on."""
    prompts = [Prompt(text, "", "", text) for text in request.prompts or ()]
    taken = {prompt.key for prompt in [*held, *prompts]}
    for text, category in request.flagged:
        prompt = Prompt(text, category or "", "", text)
        if prompt.key not in taken and is_readable(model, text) and not RULE.refuses((prompt.category,), (text,)):
            taken.add(prompt.key)
            prompts.append(prompt)
    return tuple(prompts)
