"""The editor of a mined round: it goes on from the head edit of the rounds before, with what still failed.

The experts of failing concepts are trained from where they stand, on failing images and fresh on-policy ones. Router
and halfway probe stay as they are: fitted anew on so few failures they lose more than the experts gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from safety.collect.on_policy import on_policy_contrast
from safety.collect.pairs import Pair, of_kind
from safety.collect.round_data import RoundData
from safety.collect.router_data import read_states
from safety.collect.token_attribution import PromptContrast
from safety.edit.head_edit import TeacherPairs, unstack
from safety.edit.head_editor import edit_of, tune_expert
from safety.edit.pixel_editor import largest_rank
from safety.gates.null_space import output_moved
from safety.metrics.rates import Rate
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.run_context import RunContext

LEAST_FAILURES = 4  # of a concept, under which its expert stays as it is
MOST_TIMES = 4  # that a failing image counts beside others: the same few again and again would be learned by heart

Concept = tuple[str, str]  # category and name


@dataclass(frozen=True)
class Lesson:
    """What rounds after the first learn from: failures, oldest first.

    concepts: one an expert of the start codebook, in order.
    """

    concepts: tuple[Concept, ...] = ()
    failures: tuple[Pair, ...] = ()

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

    def with_more(self, pairs: Sequence[Pair]) -> Lesson:
        """This and the failures of another round: the pairs that an expert is there for."""
        return replace(self, failures=(*self.failures, *self.placed(pairs)))


@dataclass(frozen=True)
class MinedEditor:
    """spaces: [M, k] by category, as they were. taught: the concepts whose experts are trained. report: JSON."""

    context: RunContext
    start: Codebook
    round_data: RoundData
    spaces: Mapping[str, Tensor]
    concepts: tuple[Concept, ...]
    taught: frozenset[Concept]
    report: dict[str, Any]
    table: str = "output"
    strengths: tuple[float, ...] = (1.0,)

    @property
    def full(self) -> bool:
        """Whether every space holds as many directions as it may."""
        return all(basis.shape[1] >= largest_rank(basis.shape[0]) for basis in self.spaces.values())

    def draft(self, strength: float) -> Codebook:
        """The start, at any strength: all that changes is trained."""
        return replace(self.start, version="draft")

    def tune(self, draft: Codebook, strength: float) -> Codebook:
        """The draft with the experts of the taught concepts trained from where they stand, and moved by this share.

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
        moved = replace(edit, down=edit.down.lerp(down, strength), up=edit.up.lerp(up, strength))
        return replace(draft, output=moved)

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
        """The ranks, the concepts that are trained, and how many failures the router was silent on."""
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


def mined_editor(
    context: RunContext, start: Codebook, round_data: RoundData, spaces: Mapping[str, Tensor], lesson: Lesson
) -> MinedEditor:
    """The editor of a round that follows an accepted one; round_data: of all failures so far."""
    missed = Rate(silent_on(start, context.runner, lesson.failures), len(lesson.failures))
    report = {"taught": sorted(": ".join(name) for name in lesson.taught), "missed": missed.to_dict()}
    return MinedEditor(context, start, round_data, spaces, lesson.concepts, lesson.taught, report)


def silent_on(codebook: Codebook, runner: ModelRunner, pairs: Sequence[Pair]) -> int:
    """The number of pairs on whose harmful prompts a codebook's router does not fire, so that no expert helps."""
    router = edit_of(codebook).router
    if router is None or not pairs:
        return 0
    states = read_states(runner, [pair.prompt for pair in pairs])
    return int((router.scores(states.states, states.seen).amax(1) <= 0).sum())
