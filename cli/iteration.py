"""`safecb evaluate --suite iteration`: whether rounds that learn from what still fails beat a single turn.

Runs the arms of the experiment for each seed on the machine it runs on. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from cli.own_process import ConsoleProgress, sort_prompts
from core.atomic import replace_file
from core.errors import BadInput
from core.json_records import to_json
from core.settings import Settings
from engine.model import ImageModel
from engine.registry import load_model
from safety.config import IMAGES, LoopConfig
from safety.evaluate.iteration.arms import Arm, Experiment
from safety.evaluate.iteration.page import chart, markdown, page
from safety.evaluate.iteration.trial import Tested, report, run_test, tested
from safety.policy.emoji.classifier_judge import referee, second_judge
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.suites import Size, standard
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.prompt_file import AskedPrompt
from safety.request import ImproveRequest
from safety.runtime.run_context import RunContext, prepare_run
from safety.runtime.run_prompts import write_prompts

ITERATION = "iteration"
OPTIONS = ("arms", "seeds", "images")  # of this suite alone
TEST_IMAGES = 12_000  # of an arm, at which the test has its whole size; a smaller experiment has a smaller test
PLAIN, OTHER, LEAST_OTHER = 75, 20, 4  # prompts a category: plainly, in another way, and in a small experiment
SUITE_SEED = 7502  # of the test's prompts, the same for all seeds


def check(options: argparse.Namespace) -> tuple[list[Arm], list[int]]:
    """The arms and the seeds of the options. Raises BadInput."""
    allowed = f"some of {', '.join(Arm)}, {Arm.MINED} before {Arm.RANDOM}"
    names = [name.strip() for name in options.arms.split(",")]
    if not set(names) <= set(Arm) or (Arm.RANDOM in names and Arm.MINED not in names[: names.index(Arm.RANDOM)]):
        raise BadInput("arms", options.arms, allowed)
    seeds = [each.strip() for each in options.seeds.split(",")]
    if not all(each.isdecimal() for each in seeds) or len({*seeds}) < len(seeds):
        raise BadInput("seeds", options.seeds, "whole numbers with commas between, each once")
    if options.images < 1:
        raise BadInput("images", options.images, "a number of at least 1")
    return [Arm(name) for name in dict.fromkeys(names)], [int(each) for each in seeds]


def run(options: argparse.Namespace, settings: Settings) -> str:
    """Run the arms, write iteration.json, .html, .md and .png to `options.out`; return the verdict.

    An arm is run with all seeds before the next one, and the report is written after each: a run that is ended early
    leaves the arms that are whole.
    """
    arms, seeds = check(options)
    model = load_model(settings.model, settings.device, settings.dtype, settings.home)
    judge = referee(model)
    prompts = sort_prompts(model, test_prompts(options.images), ITERATION).usable
    trials = [Trial(model, seed, options.images, options.out / "work") for seed in seeds]
    base = [run_test(trial.context, trial.context.runner.base, prompts, judge) for trial in trials]
    experiments = [Experiment(trial.context, judge, trial.today) for trial in trials]
    about = {"suite": ITERATION, "size": options.images, "seed_list": seeds}
    about |= {"model": model.facts.title, "model_hash": model.facts.model_hash}
    results: dict[Arm, list[list[Tested]]] = {}
    summary = ""
    for arm in arms:
        results[arm] = []
        for trial, experiment in zip(trials, experiments, strict=True):
            steps = [tested(s, run_test(trial.context, s.codebook, prompts, judge)) for s in experiment.steps(arm)]
            results[arm].append(steps)
            print(f"{arm}, seed {trial.seed}: done", file=sys.stderr, flush=True)
        summary = _write(options.out, report(results, base, prompts, judge) | about)
    return summary


def _write(out: Path, result: Mapping[str, object]) -> str:
    png = chart(result)
    replace_file(out / "iteration.json", to_json("iteration", result, indent=1))
    replace_file(out / "iteration.md", markdown(result).encode())
    replace_file(out / "iteration.html", page(result, png).encode())
    replace_file(out / "iteration.png", png)
    return f"{result['verdict'] or 'no verdict'}\n{out / 'iteration.html'}"


class Trial:
    """The contexts of one seed of the experiment: of the arms from a cold start, and of today's way."""

    def __init__(self, model: ImageModel, seed: int, images: int, work: Path) -> None:
        """images: about as many as an arm learns from. work: the folder of all seeds."""
        self._model, self.seed, self._policy = model, seed, EmojiPolicy()
        self._work = work / f"{model.facts.model_hash[:16]}-{self._policy.version[:16]}-{images}-{seed}"
        # Without a halfway probe, so that nothing but what is learned from differs.
        self._config = replace(LoopConfig().for_images(images, len(self._policy.categories)), halfway=False)

    @cached_property
    def context(self) -> RunContext:
        """From a cold start: plain English alone."""
        return self._prepare(self._work, replace(self._config, disguised=0, foreign=0, strewn=0))

    def today(self, images: int) -> RunContext:
        """Today's way for so many images: as a job's, with prompts of all ways in proportion."""
        config = self._config
        prompts = write_prompts(self._model, self._request, self._policy, config)
        practice = sum(prompt.safe is not None for group in prompts.router.values() for prompt in group)
        share = max(1.0, (images - 2 * len(prompts.router) * config.pairs) / practice)
        names = ("router_prompts", "disguised", "foreign", "strewn")
        counts = {name: round(share * getattr(config, name)) for name in names}
        return self._prepare(self._work / Arm.TODAY, replace(config, **counts))

    @property
    def _request(self) -> ImproveRequest:
        return ImproveRequest(prompts=None, categories=None, max_rounds=1, seed=self.seed)

    def _prepare(self, work: Path, config: LoopConfig) -> RunContext:
        second, progress = second_judge(self._model), ConsoleProgress()
        return prepare_run(self._model, self._request, self._policy, second, work, progress, config)


def test_prompts(images: int) -> Sequence[AskedPrompt]:
    """The test: the standard suite's ways of asking, smaller for fewer images; no prompt under several seeds."""
    share = min(1.0, images / TEST_IMAGES)
    other = max(LEAST_OTHER, round(share * OTHER))
    plain = max(2 * LEAST_OTHER, round(share * PLAIN))
    size = Size(plain=plain, other=other, repeated=0, benign=plain, look_alikes=other, pairs_of_objects=0)
    return standard(read_taxonomy(), SUITE_SEED, size)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite alone."""
    group = parser.add_argument_group("suite iteration")
    group.add_argument("--arms", default=",".join(Arm), help="comma separated, in this order")
    group.add_argument("--seeds", default="1", help="of the experiment, comma separated")
    group.add_argument("--images", type=int, default=IMAGES, help="about as many as an arm learns from")
