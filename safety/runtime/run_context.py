"""The context of one run, constant over its rounds: runner, sizes, prompts, baseline.

Made once a job by `prepare_run`. The rounds themselves are in `safety/loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engine.model import ImageModel
from safety.collect.halfway_data import HalfwayData, draw_halfway_data
from safety.collect.router_data import RouterData, read_router_data
from safety.config import LoopConfig
from safety.policy.policy import Policy
from safety.policy.prompts import Prompt
from safety.request import ImproveRequest
from safety.runtime.baseline import Baseline, take_baseline
from safety.runtime.executor import Executor, LocalExecutor
from safety.runtime.model_runner import ModelRunner
from safety.runtime.progress import Progress
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_prompts import RunPrompts, chosen_categories, flat, write_prompts


@dataclass(frozen=True)
class RunContext:
    """categories: the harm categories of the request."""

    runner: ModelRunner
    config: LoopConfig
    seed: int
    max_rounds: int
    policy: Policy
    categories: tuple[str, ...]
    prompts: RunPrompts
    baseline: Baseline

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


def prepare_run(
    model: ImageModel,
    request: ImproveRequest,
    policy: Policy,
    work: Path,
    progress: Progress,
    config: LoopConfig | None = None,
    executor: Callable[[ResultCache], Executor] = LocalExecutor,
) -> RunContext:
    """Write the prompts and take the baseline; everything made is kept in the folder `work`.

    Raises BadInput for a request that cannot be met, BadModel, and whatever `progress` raises (Cancelled).
    """
    config, cache = config or LoopConfig(), ResultCache(work)
    runner = ModelRunner(model, cache, progress, config.batch, executor(cache))
    prompts = write_prompts(model, request, policy, config)
    baseline = take_baseline(runner, prompts.retention, prompts.canaries, config, request.seed)
    categories = chosen_categories(request, policy)
    return RunContext(runner, config, request.seed, request.max_rounds, policy, categories, prompts, baseline)
