"""The editor of a mined round: it goes on from the head edit of the rounds before, with what still failed.

The experts of failing concepts are trained from where they stand, on failing images and fresh on-policy ones. Router
and halfway probe are fitted anew with the failures on which the router was silent, their rewrites, and harmless prompts
whose tokens had changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook
from safety.collect.halfway_data import HalfwayData, draw_halfway_data
from safety.collect.on_policy import on_policy_contrast
from safety.collect.pairs import Pair, of_kind
from safety.collect.round_data import RoundData
from safety.collect.router_data import read_router_data, read_states
from safety.collect.token_attribution import PromptContrast
from safety.edit.head_edit import TeacherPairs, unstack
from safety.edit.head_editor import edit_of, fit_router_and_probe, tune_expert
from safety.edit.pixel_editor import largest_rank
from safety.gates.null_space import output_moved
from safety.metrics.rates import Rate
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.run_context import RunContext

LEAST_FAILURES = 4  # of a concept, under which its expert stays as it is
WEIGHT = 5.0  # of a failure, beside 1 for each of the router's own prompts: there are few of them
MOST_TIMES = 4  # that a failing image counts beside others: the same few again and again would be learned by heart

Concept = tuple[str, str]  # category and name


@dataclass(frozen=True)
class Lesson:
    """What rounds after the first learn from, oldest first: failures, and harmless prompts whose tokens had changed.

    concepts: one an expert of the start codebook, in order. missed: the failures that the router was silent on. The
    others are their expert's fault: what they and their rewrites would teach a router that fires already is silence.
    """

    concepts: tuple[Concept, ...] = ()
    failures: tuple[Pair, ...] = ()
    missed: tuple[Pair, ...] = ()
    changed: tuple[str, ...] = ()

    def placed(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that an expert is there for, each under that expert's concept: its own, or "" for its category."""
        placed = []
        for pair in pairs:
            concept = next((name for name in (pair.concept, "") if (pair.category, name) in self.concepts), None)
            if concept is not None:
                placed.append(replace(pair, concept=concept))
        return placed

    @property
    def taught(self) -> frozenset[Concept]:
        """The concepts with enough failures to train their experts."""
        return frozenset(c for c in self.concepts if int(of_kind(self.failures, *c).sum()) >= LEAST_FAILURES)

    def with_more(
        self, runner: ModelRunner, codebook: Codebook, pairs: Sequence[Pair], changed: Sequence[str]
    ) -> Lesson:
        """This and what another round found under this codebook: the pairs that an expert is there for."""
        failures = self.placed(pairs)
        missed = (*self.missed, *missed_by(codebook, runner, failures))
        return replace(self, failures=(*self.failures, *failures), missed=missed, changed=(*self.changed, *changed))


@dataclass(frozen=True)
class MinedEditor:
    """spaces: [M, k] by category, as they were. taught: the concepts whose experts are trained. report: JSON."""

    context: RunContext
    start: Codebook
    round_data: RoundData
    spaces: Mapping[str, Tensor]
    concepts: tuple[Concept, ...]
    taught: frozenset[Concept]
    router: Router
    probe: HalfwayProbe | None
    report: dict[str, Any]
    table: str = "output"
    strengths: tuple[float, ...] = (1.0,)

    @property
    def full(self) -> bool:
        """Whether every space holds as many directions as it may."""
        return all(basis.shape[1] >= largest_rank(basis.shape[0]) for basis in self.spaces.values())

    def draft(self, strength: float) -> Codebook:
        """The start with router and probe moved by this share of their way to the new ones; experts as they were."""
        edit = edit_of(self.start)
        router = self.router if edit.router is None else _between(edit.router, self.router, strength)
        probe = self.probe
        if probe is not None and edit.probe is not None:
            probe = replace(probe, probes=_between(edit.probe.probes, probe.probes, strength))
        return replace(self.start, version="draft", output=replace(edit, router=router, probe=probe))

    def tune(self, draft: Codebook) -> Codebook:
        """The draft with the experts of the taught concepts trained from where they stand.

        On failing images, and on fresh on-policy ones of all wordings, so that an expert keeps what it can do.
        """
        edit, runner, steps = edit_of(draft), self.context.runner, self.round_data.config.mined_steps
        practice, experts = self._on_policy(draft), unstack(edit)
        for i, (category, concept) in enumerate(self.concepts):
            if (category, concept) in self.taught:
                halves = self._halves(practice, category, concept)
                if not all(len(half.features) for half in halves):
                    continue
                on_step = runner.steps("tune concepts", steps * len(self.concepts), steps * i)
                name = f"{category}/{concept}"
                experts[i] = tune_expert(self.round_data, runner.model.head, experts[i], halves, steps, name, on_step)
        down, up = torch.cat([one.down for one in experts]), torch.cat([one.up for one in experts])
        return replace(draft, output=replace(edit, down=down, up=up))

    def _on_policy(self, draft: Codebook) -> list[PromptContrast]:
        """On-policy tuning data of the taught concepts, each time with other seeds."""
        data, runner = self.round_data, self.context.runner
        prompts = [p for p in self.context.tuning_prompts if (p.category, p.concept) in self.taught]
        seeds = [derived_seed(data.seed, "practice", i) for i in range(data.config.mined_images)]
        return [on_policy_contrast(runner, prompts, draft, data.baseline.positions, seed) for seed in seeds]

    def _halves(
        self, practice: Sequence[PromptContrast], category: str, concept: str
    ) -> tuple[TeacherPairs, TeacherPairs]:
        """The rows of a concept to train on, and those of half B to check: of the last practice images alone.

        More images of the same prompts are worth more than a larger half B: an expert is limited by what it has seen.
        """
        *earlier, (first, second) = [images.halves(category, concept) for images in practice]
        failing = self.round_data.attribution.contrast.halves(category, concept)
        train = [half for both in earlier for half in both] + [first]
        return _joined(train, failing[0]), _joined([second], failing[1])

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """The most that any tuned part reads of its space."""
        return max(output_moved(edit_of(draft)), output_moved(edit_of(tuned)))

    def to_dict(self) -> dict[str, Any]:
        """The ranks, the concepts that are trained, and the firing rates of router and probe."""
        return {"k": sum(basis.shape[1] for basis in self.spaces.values()), **self.report}

    def pictures(self) -> dict[str, bytes]:
        """None: no space changes."""
        return {}


def _joined(practice: Sequence[TeacherPairs], failing: TeacherPairs) -> TeacherPairs:
    """All rows, the failing ones as often as it takes to be as many, but MOST_TIMES at most."""
    features = torch.cat([one.features for one in practice])
    times = min(MOST_TIMES, max(1, round(len(features) / max(1, len(failing.features)))))
    targets = torch.cat([*(one.targets for one in practice), failing.targets.repeat(times, 1)])
    return TeacherPairs(torch.cat([features, failing.features.repeat(times, 1)]), targets)


def _between(old: Router, new: Router, share: float) -> Router:
    """The router at this share of the way from `old` to `new`, whose probes are of the same concepts."""
    return Router(old.weight.lerp(new.weight, share), old.bias.lerp(new.bias, share), old.expert)


def mined_editor(
    context: RunContext, start: Codebook, round_data: RoundData, spaces: Mapping[str, Tensor], lesson: Lesson
) -> MinedEditor:
    """The editor of a round that follows an accepted one, from all failures so far and this round's data."""
    runner, concepts, data = context.runner, lesson.concepts, context.router_data
    harmful: dict[str, list[Prompt]] = {}
    for pair in lesson.missed:
        harmful.setdefault(pair.category, []).append(_prompt_of(pair))
    benign = [Prompt(text, "none", "", text) for text in lesson.changed]
    if harmful or benign:
        data = data.with_more(read_router_data(runner, harmful, benign), WEIGHT)

    def halfway() -> HalfwayData:
        first, seed = context.halfway_data, derived_seed(context.seed, "mined", runner.round)
        if not harmful:
            return first
        more = draw_halfway_data(runner, harmful, benign, seed, every=1).states
        return replace(first, states=first.states.with_more(more, WEIGHT))

    router, probe, report = fit_router_and_probe(context, concepts, data, halfway)
    report["taught"] = sorted(": ".join(name) for name in lesson.taught)
    report["missed"] = Rate(len(lesson.missed), len(lesson.failures)).to_dict()
    return MinedEditor(context, start, round_data, spaces, concepts, lesson.taught, router, probe, report)


def missed_by(codebook: Codebook, runner: ModelRunner, pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The pairs whose harmful prompts a codebook's router does not fire on: all without an edit.

    None where an edit has no router, since it always acts.
    """
    if codebook.output is None or not pairs:
        return pairs
    router = codebook.output.router
    if router is None:
        return ()
    states = read_states(runner, [pair.prompt for pair in pairs])
    fired = router.scores(states.states, states.seen).amax(1) > 0
    return [pair for pair, fires in zip(pairs, fired.tolist(), strict=True) if not fires]


def _prompt_of(pair: Pair) -> Prompt:
    return Prompt(pair.prompt, pair.category, pair.concept, pair.safe_prompt)
