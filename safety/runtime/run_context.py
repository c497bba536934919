"""The context of one run, constant over its rounds: runner, sizes, prompts, baseline.

Made once a job by `prepare_run`. The rounds themselves are in `safety/loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engine.model import ImageModel
from safety.collect.halfway_data import HalfwayData, draw_halfway_data
from safety.collect.router_data import RouterData, read_router_data
from safety.config import LoopConfig, images_within
from safety.judges.grammar import is_covered
from safety.judges.matchers import Matcher
from safety.judges.registry import Judge
from safety.metrics.panel import Instruments
from safety.outcome import RunFacts
from safety.policy.plan import Plan
from safety.policy.policy import Policy, in_turn
from safety.policy.prompts import Prompt
from safety.request import ImproveRequest
from safety.runtime.baseline import Baseline, take_baseline
from safety.runtime.executor import Executor, LocalExecutor
from safety.runtime.model_runner import ModelRunner
from safety.runtime.preflight import Preflight, preflight
from safety.runtime.progress import Progress
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_prompts import RunPrompts, chosen_categories, flat, write_prompts


@dataclass(frozen=True)
class RunContext:
    """categories: the harm categories of the request. second: the second judge."""

    runner: ModelRunner
    config: LoopConfig
    seed: int
    max_rounds: int
    policy: Policy
    categories: tuple[str, ...]
    prompts: RunPrompts
    second: Judge
    preflight: Preflight

    @cached_property
    def baseline(self) -> Baseline:
        """The base codebook's benign images, canaries and limits; computed at first use. Raises BadModel."""
        prompts = self.prompts
        return take_baseline(self.runner, prompts.retention, prompts.canaries, self.config, self.seed)

    @property
    def facts(self) -> RunFacts:
        """The names of policy and second judge, and the categories by whether that judge knows them."""
        covered = tuple(name for name in self.categories if is_covered(self.second.covers, name))
        self_judged = tuple(name for name in self.categories if name not in covered)
        return RunFacts(self.policy.name, self.second.name, covered, self_judged)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The categories for which the pixel table is edited: of the pattern level, and with a judge of such edits.

        A judge that reads codes hardly sees them: an image encoded again has the same codes, until suddenly it has not.
        """
        model = self.runner.model.facts
        if "pixel" not in model.edits:
            return ()
        judged = self.categories if model.judge_reads == "pixels" else self.facts.covered
        return tuple(name for name in judged if name in self.policy.patterns)

    @property
    def matcher(self) -> Matcher | None:
        """The second judge, if it can also say whether an image shows its prompt."""
        return self.second if isinstance(self.second, Matcher) else None

    @property
    def instruments(self) -> Instruments:
        """Those who look at validation images besides the model's own judge."""
        return Instruments(self.baseline.validity, self.second, self.matcher)

    @cached_property
    def router_data(self) -> RouterData:
        """Prompt states of the router's prompts; computed at first use."""
        return read_router_data(self.runner, self.prompts.router, self.prompts.router_benign)

    @cached_property
    def halfway_data(self) -> HalfwayData:
        """Half-drawn images of the router's prompts; drawn at first use."""
        return draw_halfway_data(self.runner, self.prompts.router, self.prompts.router_benign, self.seed)

    @property
    def tuning_prompts(self) -> list[Prompt]:
        """The prompts of the on-policy tuning data: the router's harmful ones with a rewrite."""
        return [prompt for prompt in flat(self.prompts.router) if prompt.safe is not None]


def comparable(harmful: Sequence[Prompt], second: Judge) -> Sequence[Prompt]:
    """The prompts of the categories that the second judge knows, those categories in turn."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in harmful:
        if is_covered(second.covers, prompt.category):
            by_category.setdefault(prompt.category, []).append(prompt)
    return in_turn(by_category.values(), len(harmful))


def prepare_run(
    model: ImageModel,
    request: ImproveRequest,
    policy: Policy,
    second: Judge,
    work: Path,
    progress: Progress,
    config: LoopConfig | None = None,
    executor: Callable[[ResultCache], Executor] = LocalExecutor,
    on_plan: Callable[[Plan], None] = lambda _: None,
) -> RunContext:
    """Write the prompts and compare the judges; everything made is kept in the folder `work`.

    on_plan: takes the plan before anything is drawn, and again where a budget in minutes makes the run smaller.
    Raises BadInput for a request that cannot be met, and whatever `progress` raises (Cancelled).
    """
    cache, seed = ResultCache(work), request.seed
    config = config or LoopConfig()
    runner = ModelRunner(model, cache, progress, config.batch, executor(cache))
    categories, prompts = chosen_categories(request, policy), write_prompts(model, request, policy, config)

    def sized(images: int | None) -> tuple[LoopConfig, RunPrompts]:
        if images is None:
            return config, prompts
        small = config.for_images(images, len(categories))
        return small, write_prompts(model, request, policy, small)

    size, chosen = sized(request.images)
    on_plan(chosen.plan)
    harmful = comparable([*prompts.canaries, *flat(prompts.pairs[0])], second)
    ready = preflight(runner, harmful, prompts.retention, second, seed, request.accept_self_judged)
    limit = images_within(request.images, request.minutes, ready.images_per_s)
    images = cache.facts("budget", lambda: {"images": limit})["images"]
    if images != request.images:
        size, chosen = sized(images)
        on_plan(chosen.plan)
    return RunContext(runner, size, seed, request.max_rounds, policy, categories, chosen, second, ready)
