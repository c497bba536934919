"""The editor of the image head: a Harmful Space a category, an expert a concept, one router and one halfway probe.

For categories of either level: the head is the table that sees the text. Each concept's expert starts from its
category's tuned map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import SafeCBError
from safety.collect.on_policy import on_policy_contrast
from safety.collect.pairs import of_kind
from safety.collect.round_data import RoundData
from safety.collect.router_data import PromptStates, RouterData
from safety.collect.token_attribution import PromptContrast
from safety.edit.editor import STRENGTHS
from safety.edit.harmful_space import harmful_space, join
from safety.edit.head_edit import TeacherPairs, leading_part, refit, stack, unstack
from safety.edit.pixel_editor import largest_rank
from safety.edit.router_fit import STEPS, fit_router
from safety.edit.tuning import HeadTuningData, tune_output
from safety.gates.null_space import output_moved
from safety.metrics.charts import spectra_png
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner
from safety.runtime.run_context import RunContext

GUIDANCE = 0.25  # the share left under an expert: guidance magnifies what the edit does, and too much leaves nothing
LEAST_TAUGHT = 8  # images of a concept, under which it stays with its category


@dataclass(frozen=True)
class HeadEditor:
    """spaces: [M, k] by category; concepts: (category, concept), an expert each; router, probe: they choose the expert.

    tuning_prompts: for the on-policy tuning of the concepts. found: the report.
    """

    runner: ModelRunner
    start: Codebook
    round_data: RoundData
    spaces: Mapping[str, Tensor]
    concepts: Sequence[tuple[str, str]]
    router: Router
    probe: HalfwayProbe | None
    tuning_prompts: Sequence[Prompt]
    report: dict[str, Any]
    table: str = "output"
    strengths: tuple[float, ...] = STRENGTHS

    @property
    def full(self) -> bool:
        """Whether every space holds as many directions as it may."""
        return all(basis.shape[1] >= largest_rank(basis.shape[0]) for basis in self.spaces.values())

    def draft(self, strength: float) -> Codebook:
        """The start with the leading directions removed and the rest mapped to the safe features by least squares."""
        round_data = self.round_data
        experts = {
            category: refit(
                leading_part(basis, strength),
                round_data.baseline.mean,
                round_data.attribution.contrast.halves(category)[0],
                round_data.baseline.features,
                round_data.config.tuned_rank,
            )
            for category, basis in self.spaces.items()
        }
        return self.with_experts([experts[category] for category, _ in self.concepts])

    def tune(self, draft: Codebook, strength: float) -> Codebook:
        """The draft with its tuned parts trained on the codes of the safe prompt: by category, then by concept.

        Categories are tuned off-policy, on the pairs' images; concepts on-policy, on images of the codebook tuned so
        far: these are the histories that the edit meets in use.
        """
        categories = self.by_category(draft)
        return self.by_concept(categories, self.on_policy(categories))

    def on_policy(self, codebook: Codebook) -> PromptContrast:
        """The on-policy tuning data of the concepts under a codebook."""
        data = self.round_data
        return on_policy_contrast(self.runner, self.tuning_prompts, codebook, data.baseline.positions, data.seed)

    def by_category(self, draft: Codebook) -> Codebook:
        """The draft after the tuning by category."""
        of, steps = [category for category, _ in self.concepts], self.round_data.config.output_steps
        experts, head = unstack(edit_of(draft)), self.runner.model.head
        for i, category in enumerate(self.spaces):
            on_step = self.runner.steps("tune categories", steps * len(self.spaces), steps * i)
            halves = self.round_data.attribution.contrast.halves(category)
            learned = tune_expert(self.round_data, head, experts[of.index(category)], halves, steps, category, on_step)
            experts = [learned if name == category else old for name, old in zip(of, experts, strict=True)]
        return self.with_experts(experts)

    def by_concept(self, codebook: Codebook, images: PromptContrast) -> Codebook:
        """The codebook after the tuning by concept on these images; concepts with fewer than LEAST_TAUGHT stay."""
        steps, experts, head = self.round_data.config.concept_steps, unstack(edit_of(codebook)), self.runner.model.head
        for i, (category, concept) in enumerate(self.concepts):
            if len(of_kind(images.members, category, concept).nonzero()) >= LEAST_TAUGHT:
                on_step = self.runner.steps("tune concepts", steps * len(self.concepts), steps * i)
                halves = images.halves(category, concept)
                name = f"{category}/{concept}"
                experts[i] = tune_expert(self.round_data, head, experts[i], halves, steps, name, on_step)
        return self.with_experts(experts)

    def with_experts(self, experts: Sequence[HeadEdit]) -> Codebook:
        """The start with these experts, one a concept, behind router and probe; those of two categories may join."""
        categories = list(self.spaces)
        groups = torch.tensor([categories.index(category) for category, _ in self.concepts])
        output = stack(experts, self.router, self.probe, GUIDANCE, groups)
        return replace(self.start, version="draft", output=output)

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """The most that any tuned part reads of its space."""
        return max(output_moved(edit_of(draft)), output_moved(edit_of(tuned)))

    def to_dict(self) -> dict[str, Any]:
        """Ranks by category, and the firing rates of router and probe."""
        return {"k": sum(basis.shape[1] for basis in self.spaces.values()), **self.report}

    def pictures(self) -> dict[str, bytes]:
        """The spectrum of each category's space."""
        return {"spectrum_output.png": spectra_png(self.report)}


def tune_expert(
    round_data: RoundData,
    head: Callable[[Tensor], Tensor],
    expert: HeadEdit,
    halves: tuple[TeacherPairs, TeacherPairs],
    steps: int,
    name: str,
    on_step: Callable[[int], None],
) -> HeadEdit:
    """The expert after training on half A, checked on half B. name: of its randomness."""
    train, check = halves
    data = HeadTuningData(train, round_data.baseline.features, check)
    generator, rows = round_data.generator("tune", "output", name), round_data.config.tuning_rows
    return tune_output(expert, head, data, steps, rows, generator, on_step)


def edit_of(codebook: Codebook) -> HeadEdit:
    """The head edit of a codebook. Raises SafeCBError where it has none."""
    if codebook.output is None:
        raise SafeCBError(f"codebook {codebook.version} has no head edit to tune")
    return codebook.output


def head_editors(
    context: RunContext, start: Codebook, round_data: RoundData, taken: Mapping[str, Tensor]
) -> list[HeadEditor]:
    """One editor, or none where no category shows a direction; taken: [M, k] spaces of the rounds before."""
    runner = context.runner
    differences, spaces = round_data.attribution.contrast.text_differences(), dict(taken)
    report: dict[str, Any] = {}
    for category in round_data.categories:
        runner.report("output space", 0, 1)
        rows = round_data.of(category)
        halves, sure = round_data.first_half[rows], round_data.confidence[rows]
        space = harmful_space(differences[rows], sure, halves, round_data.generator("features", category))
        report[category] = space.to_dict()
        if space.rank:
            earlier = [taken[category]] if category in taken else []
            spaces[category] = join([*earlier, space.basis], largest_rank(differences.shape[1]))
    if not spaces:
        return []
    concepts = [(category, concept) for category in spaces for concept in context.router_data.harmful[category]]
    router, probe, rates = fit_router_and_probe(context, concepts)
    found = report | rates
    return [HeadEditor(runner, start, round_data, spaces, concepts, router, probe, context.tuning_prompts, found)]


def fit_router_and_probe(
    context: RunContext, concepts: Sequence[tuple[str, str]]
) -> tuple[Router, HalfwayProbe | None, dict[str, Any]]:
    """A router and, where the run has one, a halfway probe for these concepts; and their firing rates, as JSON."""
    read, runner, steps = context.router_data, context.runner, STEPS * (1 + context.config.halfway)
    categories = dict.fromkeys(category for category, _ in concepts)

    def rates(router: Router, data: RouterData) -> dict[str, float]:
        return firing_rates(router, {name: data.harmful[name] for name in categories}, data.benign)

    router = fit(read, concepts, runner.steps("router", steps))
    report = {"router": rates(router, read)}
    if not context.config.halfway:
        return router, None, report
    begun = context.halfway_data
    probe = HalfwayProbe(begun.after, fit(begun.states, concepts, runner.steps("router", steps, STEPS)))
    return router, probe, report | {"halfway_probe": rates(probe.probes, begun.states)}


def fit(data: RouterData, concepts: Sequence[tuple[str, str]], step: Callable[[int], None]) -> Router:
    """A router with a probe for each concept."""
    return fit_router([data.harmful[category][concept] for category, concept in concepts], data.benign, step)


def firing_rates(
    router: Router, harmful: Mapping[str, Mapping[str, PromptStates]], benign: PromptStates
) -> dict[str, float]:
    """The share of its training data on which a router fires: of each category, and of the benign part."""
    rates = {}
    for name, sets in {**{name: [*group.values()] for name, group in harmful.items()}, "benign": [benign]}.items():
        fired = torch.cat([router.scores(states.states, states.seen).amax(1) for states in sets]) > 0
        rates[name] = float(fired.float().mean())
    return rates
