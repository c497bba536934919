"""The arms of the experiment on iteration: codebooks that learn from equally many images, in one turn or in several.

All but `today` go on from one cold start, which knows plain English alone. Rounds are taken as they come, without gates
and without a halfway probe, so that nothing but what is learned from differs. Makes codebooks; the test is elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from codebook.identity import Identity
from codebook.tensors import pack, unpack
from codebook.value import Codebook
from core.errors import SafeCBError
from safety.collect.collection import Collection, collect, pair_from_dict, pair_to_dict
from safety.collect.mining import EVEN, by_failures, evenly
from safety.collect.pairs import Pair, first_halves
from safety.collect.proposals import Proposal, Proposals
from safety.collect.rewrites import find_rewrites
from safety.collect.round_data import enough, gather_round_data
from safety.config import LoopConfig
from safety.edit.head_editor import head_editors
from safety.edit.mined_editor import Lesson, mined_editor
from safety.judges.registry import Judge, finds_harm, self_judge
from safety.policy.group_source import GroupSource
from safety.policy.prompts import PAIR, is_readable
from safety.rounds import make_round_data
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext

ROUNDS = 4
PROBED = 32  # images a batch of probes: the rates by which the next ones are chosen follow each batch
SPACE, CONCEPTS = "space/", "start-concepts"  # in the cache
MOST_PRACTICE = 8  # times that a tuning prompt is drawn in a round


class Arm(StrEnum):
    """What an arm learns from, beside its start."""

    SINGLE = "single"
    MINED = "mined"
    RANDOM = "random"
    FRESH = "fresh"
    REFEREE = "referee"
    TODAY = "today"


ABOUT: Mapping[Arm, str] = {
    Arm.SINGLE: "single turn: all prompts at one time under v0, those unsafe by its own judgement",
    Arm.MINED: "mined rounds: what the model itself still finds unsafe",
    Arm.RANDOM: "random rounds: as many as mined ones, but not the failing ones",
    Arm.FRESH: "fresh rounds: all of a round's prompts, evenly over the ways of asking",
    Arm.REFEREE: "mined by the referee, in place of the model's own judgement",
    Arm.TODAY: "today's single round, whose prompts hold attacks and languages from the start",
}


@dataclass(frozen=True)
class Step:
    """An arm after a round. images: drawn by it so far; failed: of the round's probes; pairs: that the round added."""

    codebook: Codebook
    images: int
    failed: int = 0
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Start:
    """The codebook after a first round, the images drawn for it, its spaces, and its experts' concepts."""

    codebook: Codebook
    images: int
    spaces: Mapping[str, Tensor] = field(default_factory=dict)
    concepts: tuple[tuple[str, str], ...] = ()


def first_round(context: RunContext) -> Start:
    """A first round at full strength, untested. Raises SafeCBError where its pairs show no direction."""
    runner = context.runner
    runner.round = 1
    collection = collect(context, runner.base)

    def train() -> dict[str, Tensor]:
        pairs = enough(collection.pairs, context.config.least_pairs)
        round_data = make_round_data(context, pairs)
        editors = [] if round_data is None else head_editors(context, runner.base, round_data, {})
        if not editors:
            raise SafeCBError(f"{len(pairs)} pairs of the first round show no direction: draw more images")
        editor = editors[0]
        runner.cache.facts(CONCEPTS, lambda: list(editor.concepts))  # before the tensors, which say that it is there
        spaces = {SPACE + name: basis for name, basis in editor.spaces.items()}
        return pack(editor.tune(editor.draft(1.0), 1.0)) | spaces

    tensors = runner.cache.tensors("start", train)
    spaces = {name.removeprefix(SPACE): basis for name, basis in tensors.items() if name.startswith(SPACE)}
    packed = {name: tensor for name, tensor in tensors.items() if not name.startswith(SPACE)}
    codebook = unpack("draft", Identity.of(runner.base, {}), packed)
    concepts = tuple((category, name) for category, name in runner.cache.facts(CONCEPTS, _lost))
    return Start(codebook, _images(collection) + len(context.tuning_prompts), spaces, concepts)


def _lost() -> list[Any]:
    raise SafeCBError(f"the work folder has a start without {CONCEPTS}.json, so no expert could learn: use another one")


def _images(collection: Collection) -> int:
    """The images of prompts, and of the rewrites of those that were unsafe."""
    return sum(
        2 * log.get("drawn", 0) - log.get("no_rewrite", 0) - log.get("not_unsafe", 0) for log in collection.log.values()
    )


class Experiment:
    """The arms from one context of one seed; everything made is kept in its folder.

    today: gives the context of the arm `today` for so many images.
    """

    def __init__(self, context: RunContext, referee: Judge, today: Callable[[int], RunContext]) -> None:
        self._context, self._today = context, today
        self._own, self._referee = self_judge(context.runner.model), referee

    @cached_property
    def start(self) -> Start:
        """The cold start of all arms but `today`."""
        return first_round(self._context)

    def steps(self, arm: Arm) -> Iterator[Step]:
        """The arm at its start and after each further round: one for the single turn, the end alone for today's way."""
        if arm is Arm.TODAY:
            first = first_round(self._today(self.start.images + (ROUNDS - 1) * self._a_round))
            yield Step(first.codebook, first.images)
            return
        steps = [Step(self.start.codebook, self.start.images)]
        yield steps[0]
        if arm is Arm.SINGLE:
            yield self._next(arm, 2, steps, ROUNDS - 1)
            return
        for number in range(2, ROUNDS + 1):
            steps.append(self._next(arm, number, steps, 1))
            yield steps[-1]

    @property
    def _practice(self) -> int:
        """Practice images of a round."""
        return self._context.config.mined_images * len(self._context.tuning_prompts)

    @property
    def _a_round(self) -> int:
        """Images that a round may draw."""
        config = self._context.config
        return config.probes + self._practice

    def _next(self, arm: Arm, number: int, steps: Sequence[Step], turns: int) -> Step:
        """The step after `steps`, with the images of so many rounds."""
        last, runner = steps[-1], self._context.runner
        runner.round = number
        found = runner.cache.facts(f"{arm}-{number}-lesson", lambda: self._probe(arm, number, last.codebook, turns))
        pairs = tuple(pair_from_dict(row) for row in found["pairs"])
        lesson = Lesson(self.start.concepts)
        for taught in (*(step.pairs for step in steps[1:]), pairs):
            lesson = lesson.with_more(taught)
        codebook, practised = self._taught(arm, number, last.codebook, lesson, turns)
        return Step(codebook, last.images + found["images"] + practised, found["failed"], pairs)

    def _probe(self, arm: Arm, number: int, codebook: Codebook, turns: int) -> dict[str, Any]:
        """What a round learns from, as JSON: pairs, and the images drawn. The single turn probes under v0."""
        context, config = self._context, self._context.config
        seed = derived_seed(context.seed, "iteration", number)
        source, prompts = GroupSource(context.policy, context.categories, seed), context.prompts
        proposals = Proposals(source, PAIR, prompts.held_keys, random.Random(seed), prompts.learned_keys)
        under = context.runner.base if arm is Arm.SINGLE else codebook
        probing = _Probing(context, under, proposals, number)
        judge, total = self._referee if arm is Arm.REFEREE else self._own, turns * config.probes
        mines = arm in (Arm.MINED, Arm.REFEREE)
        for batch in evenly(proposals, round(EVEN * total) if mines else total, PROBED):
            probing.draw(batch, judge)
        for batch in by_failures(proposals, total - probing.drawn if mines else 0, PROBED):
            probing.draw(batch, judge)
        chosen = self._chosen(arm, number, probing)
        return {
            "pairs": [pair_to_dict(pair) for pair, _ in chosen],
            "failed": sum(unsafe for _, unsafe in probing.pairs),
            "images": probing.judged,
        }

    def _chosen(self, arm: Arm, number: int, probing: _Probing) -> list[tuple[Pair, bool]]:
        """The pairs that the arm learns from."""
        if arm is Arm.FRESH:
            return probing.pairs
        failing = [each for each in probing.pairs if each[1]]
        if arm is not Arm.RANDOM:
            return failing
        others = [each for each in probing.pairs if not each[1]]
        mined = self._context.runner.cache.facts(f"{Arm.MINED}-{number}-lesson", self._not_mined)
        random.Random(f"{self._context.seed}/random/{number}").shuffle(others)
        return others[: len(mined["pairs"])]

    def _not_mined(self) -> dict[str, Any]:
        raise SafeCBError(f"the arm {Arm.RANDOM} learns from as many prompts as {Arm.MINED}, which comes before it")

    def _taught(self, arm: Arm, number: int, codebook: Codebook, lesson: Lesson, turns: int) -> tuple[Codebook, int]:
        """The codebook after a round's training, and the practice images of it; as it was without a lesson."""
        runner = self._context.runner
        if not lesson.failures or bool(first_halves(lesson.failures).all()):  # no half B to check on
            return codebook, 0
        images, config = self._practised(lesson, turns)

        def train() -> dict[str, Tensor]:
            seed = derived_seed(self._context.seed, "round", number)
            round_data = gather_round_data(runner, self._context.baseline, lesson.failures, config, seed)
            editor = mined_editor(self._context, codebook, round_data, self.start.spaces, lesson)
            return pack(editor.tune(editor.draft(1.0), 1.0))

        packed = runner.cache.tensors(f"{arm}-{number}", train)
        return unpack("draft", Identity.of(runner.base, {}), packed), images

    def _practised(self, lesson: Lesson, turns: int) -> tuple[int, LoopConfig]:
        """As many practice images as a round may have, whatever it teaches; and the sizes of such a round."""
        config = self._context.config
        prompts = sum((p.category, p.concept) in lesson.taught for p in self._context.tuning_prompts)
        times = min(MOST_PRACTICE, max(1, self._practice // max(1, prompts))) * turns
        return times * prompts, replace(config, mined_images=times, mined_steps=config.mined_steps * turns)


class _Probing:
    """Draws and judges proposals. pairs: those with a rewrite, and whether the image was unsafe.

    No image of a rewrite is drawn, so that arms which learn from more prompts draw no more: a pair holds the codebook's
    own image of the prompt for both sides, and the rewrite gives its targets.
    """

    def __init__(self, context: RunContext, codebook: Codebook, proposals: Proposals, number: int) -> None:
        self._context, self._codebook, self._proposals = context, codebook, proposals
        self._seed = derived_seed(context.seed, "probes", number)
        self.pairs: list[tuple[Pair, bool]] = []
        self.drawn = self.judged = 0

    def draw(self, proposals: Sequence[Proposal], judge: Judge) -> None:
        """Draw a batch and judge it by `judge`."""
        runner = self._context.runner
        self.drawn += len(proposals)
        batch = [each for each in proposals if is_readable(runner.model, each.prompt.text)]
        if not batch:
            return
        prompts = [each.prompt for each in batch]
        seeds = [derived_seed(self._seed, p.text) if p.seed is None else p.seed for p in prompts]
        tokens = runner.tokens("unsafe", [prompt.text for prompt in prompts], seeds, self._codebook)
        images = runner.decode(tokens, self._codebook)
        unsafe = torch.cat([finds_harm(judge, part) for part in torch.split(images, runner.batch)]).tolist()
        self._proposals.record(batch, unsafe)
        self.judged += len(batch)
        rewrites = find_rewrites(runner.model, prompts, self._context.policy.terms())
        for prompt, seed, own, is_unsafe, safe in zip(prompts, seeds, tokens, unsafe, rewrites, strict=True):
            if safe is not None:
                names = (prompt.text, safe.text, prompt.category, prompt.concept)
                self.pairs.append((Pair(*names, seed, own, own, 1.0, safe.by_policy), is_unsafe))
