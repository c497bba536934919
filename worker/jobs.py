"""Jobs of the queue: improve the active codebook by the model's own judgement, assist a running job, compare versions.

Only joins model, judges and loop. Attempts and crash recovery are in `worker/attempt.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from codebook.value import Codebook
from core import logs
from core.bucket.shared_folder import SharedFolder
from core.settings import Settings
from core.wire import RedisNames
from engine.machine import machine_of
from engine.model import ImageModel
from engine.registry import has_beside, open_model
from safety.config import LoopConfig
from safety.evaluate.assessment import assess
from safety.judges.grammar import REFEREE
from safety.judges.names import parse_second_judge
from safety.judges.registry import find_judges
from safety.loop import ImproveRequest, Progress, RoundResult
from safety.loop import improve as improve_codebook
from safety.policy.plan import Plan
from safety.policy.policy_store import find_policy, usual_policy
from safety.runtime.run_context import RunContext, prepare_run
from worker.assistant import Caller, help_with
from worker.attempt import PATIENCE_S, Loop, run
from worker.pair_examiner import open_pairs
from worker.progress import JournalProgress
from worker.shadow_job import run_shadow
from worker.shared_tasks import SharedExecutor


def improve(job_id: str) -> None:
    """Run the improve job `job_id` of the journal to its end, or resume it where an earlier attempt died.

    The settings are those of the worker's environment. An error of the job is raised after it is in the job's record.
    """
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.log)
    run(
        job_id,
        settings,
        _load,
        SelfImprovement(settings, Caller(settings.redis_url, job_id, RedisNames.of(settings).help_queue)),
    )


def shadow(job_id: str) -> None:
    """Run the shadow job `job_id`, as `improve` does an improve job."""
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.log)
    run_shadow(job_id, settings, _load, open_pairs)


def help_improve(job_id: str) -> None:
    """Take batches off the running improve job `job_id` until it ends."""
    help_with(job_id, Settings.from_environ(os.environ), _load, LoopConfig())


def _load(settings: Settings) -> ImageModel:
    return open_model(settings, PATIENCE_S)


class SelfImprovement(Loop):
    """The loop of `safety`, with the policy and judges that the request names; `call` calls assistant workers."""

    def __init__(self, settings: Settings, call: Callable[[], None]) -> None:
        self._settings, self._call = settings, call
        self._context: RunContext | None = None  # of the job, once its rounds have begun

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: JournalProgress
    ) -> Iterable[RoundResult]:
        """See Loop.

        Raises BadInput for the name of a policy or a judge that is none, BadModel where the second judge cannot be had:
        its gate cannot be left out.
        """
        policies = SharedFolder.policies(self._settings, PATIENCE_S)
        policy = find_policy(request.policy or usual_policy(model.facts.categories), policies.read())
        device = model.base_codebook().pixel.device
        second = parse_second_judge(request.second_judge or self._settings.second_judge, model, device)
        tested = has_beside(model.facts.model_id, REFEREE)

        def take(plan: Plan) -> None:
            watch.plan(plan if tested else plan.without_test(), plan.memory(model.facts))

        self._context = prepare_run(
            model,
            request,
            policy,
            second,
            work,
            watch,
            executor=partial(SharedExecutor, call=self._call, machine=machine_of(model)),
            on_plan=take,
        )
        return improve_codebook(self._context, start)

    def assess(
        self, model: ImageModel, start: Codebook, end: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> dict[str, Any] | None:
        """See Loop; in the context of `rounds`. None where the model has no referee."""
        if self._context is None or not has_beside(model.facts.model_id, REFEREE):
            return None
        return assess(self._context, start, end, find_judges([REFEREE], model)[0])
