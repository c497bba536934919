"""Shadow jobs: what the rule decides is moved once, by real workers too, and a person or a fault ends a comparison."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from codebook.store import ActiveRecord
from codebook.trials.rule import Trial
from core.wire import FUNCTIONS, RedisNames
from records.journal import SHADOW
from records.shadow_images import LiveImage, ShadowList
from tests.support.books import publish
from tests.support.scripted import ScriptedJob, StillModel
from tests.support.servers.house import House, RedisProcess, redis_process
from tests.support.serving import wait_for
from tests.support.trials.scripted_shadow import STILL, open_scripted
from worker import shadow_job
from worker.progress import JournalProgress
from worker.shadow_job import run_shadow


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def house(tmp_path: Path, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A house whose store has a version v1 beside the active v0."""
    monkeypatch.setattr(shadow_job, "BEGIN_S", 0.2)
    house = House(tmp_path, redis, SAFECB_MODEL=STILL)
    base = StillModel().base_codebook()
    house.store.initialise(base, {**vars(StillModel.facts)})
    publish(house.store, type(base)("draft", base.family, base.model_hash, base.pixel + 0.1))
    yield house
    house.close()
    house.redis.flushall()


def begin(house: House, pairs: int = 3000, steps: bool = True, enqueue: bool = False) -> str:
    """A shadow job of v1, as a server begins it."""
    request = {"version": "v1", "share": 1.0, "pairs": pairs, "margin": 0.01, "steps": steps}
    job = house.journal.create(SHADOW, request).id
    house.store.begin_shadow("v1", 1.0, job, by="a")
    if enqueue:
        house.queue.enqueue_call(ScriptedJob.functions[SHADOW], args=(job,), job_id=job)
    return job


def lend(house: House, job: str, count: int, word: str = "alike", version: str = "v0", unit: str = "") -> None:
    images = ShadowList(house.redis_process.url, RedisNames.of(house.settings).lent)
    for i in range(count):
        key = unit or f"{word} {i} {count}"
        images.lend(job, LiveImage(key, version, f"{word} {i}", i, 2.0, 1.0, 0, False, torch.tensor([1, 2, 3, 4])))
    images.close()


def attempt(house: House, job: str) -> None:
    run_shadow(job, house.settings, lambda settings: StillModel(), open_scripted)


def decided(house: House, job: str) -> tuple[str, ActiveRecord]:
    record = house.journal.get(job)
    assert record.status == "finished" and record.result is not None, record
    return record.result["decision"], house.store.active()


def test_a_worse_candidate_retreats_with_the_counts_that_decided(house: House) -> None:
    job = begin(house)
    lend(house, job, 200, "worse")
    attempt(house, job)
    decision, record = decided(house, job)
    assert (decision, record.version, record.shadow, record.canary) == ("retreat", "v0", {}, "")
    assert (record.moved_by, record.move) == (f"job {job}", "shadow")
    assert "v1 is worse than v0: of " in record.reason
    again = Trial.read(record.evidence)
    assert again.decision == "retreat" == record.evidence["decision"]
    assert again.pairs < 30  # none after the decision is counted
    assert house.redis.keys("rq:safecb:shadow*") == []


@pytest.mark.parametrize(("steps", "move", "canary"), [(True, "canary", "v1"), (False, "shadow", "")])
def test_an_equal_candidate_is_promoted_into_the_first_step_or_reported(
    house: House, steps: bool, move: str, canary: str
) -> None:
    job = begin(house, steps=steps)
    for block in range(2):
        lend(house, job, 500 - block)
        if block == 0:
            attempt_with(house, job, stop_after=500)
    attempt(house, job)
    decision, record = decided(house, job)
    assert (decision, record.move, record.canary, record.version) == ("promote", move, canary, "v0")
    again = Trial.read(record.evidence)
    assert again.decision == "promote" and again.curve[-1] == again.with_point().curve[-1]
    counts = [point[0] for point in again.curve]  # the curve of the attempt that died goes on
    assert counts[:2] == [0, shadow_job.BATCH] and counts == sorted(counts)
    assert record.traffic == ({"v0": 0.99, "v1": 0.01} if steps else {})


class Died(BaseException):
    pass


def die(*arguments: object, **more: object) -> None:
    raise Died


def attempt_with(house: House, job: str, stop_after: int) -> None:
    """An attempt that dies once it has written so many pairs; the next one goes on with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadow_job, "WRITE_EVERY_S", 0.0)
        patch.setattr(time, "sleep", die)
        with pytest.raises(Died):
            attempt(house, job)
    written = house.journal.get(job).progress["trial"]["pairs"]
    assert stop_after - shadow_job.BATCH <= written <= stop_after


def test_a_callers_same_prompt_and_other_versions_do_not_count(house: House) -> None:
    job = begin(house, pairs=3)
    lend(house, job, 40, "worse", unit="the same")
    lend(house, job, 40, "worse", version="v1")
    lend(house, job, 2)
    attempt(house, job)
    decision, record = decided(house, job)
    assert (decision, record.version, record.shadow) == ("undecided", "v0", {})
    counts = record.evidence["measures"]["self"]
    assert (counts["worse"], counts["equal"], counts["better"]) == (1, 2, 0)


def test_a_callers_same_prompt_does_not_count_in_another_attempt(house: House) -> None:
    job = begin(house, pairs=2)
    lend(house, job, 1, unit="the same")
    attempt_with(house, job, stop_after=1)
    lend(house, job, 1, "worse", unit="the same")
    lend(house, job, 1)
    attempt(house, job)
    counts = decided(house, job)[1].evidence["measures"]["self"]
    assert (counts["worse"], counts["equal"]) == (0, 2)
    assert house.redis.keys("rq:safecb:shadow*") == []


@pytest.mark.parametrize(("word", "decision"), [("worse", "retreat"), ("better", "promote")])
def test_a_decision_of_an_attempt_that_died_after_its_move_is_recorded(
    house: House, monkeypatch: pytest.MonkeyPatch, word: str, decision: str
) -> None:
    job = begin(house)
    lend(house, job, 300, word)
    with monkeypatch.context() as patch:
        patch.setattr(JournalProgress, "end", die)
        with pytest.raises(Died):
            attempt(house, job)
    moved = house.store.active()
    assert not house.journal.get(job).ended and moved.moved_by == f"job {job}"
    attempt(house, job)
    assert decided(house, job) == (decision, moved)
    assert house.journal.get(job).result == moved.evidence


def test_a_move_is_recorded_though_the_job_is_cancelled_before_its_next_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(house)
    lend(house, job, 300, "worse")
    with monkeypatch.context() as patch:
        patch.setattr(JournalProgress, "end", die)
        with pytest.raises(Died):
            attempt(house, job)
    moved = house.store.active()
    house.journal.update(job, cancel_requested=True)
    house.worker()  # finds it lost, and lets an attempt say how it ended
    record = house.wait_ended(job)
    assert (record.status, record.result) == ("finished", moved.evidence)
    assert house.store.active() == moved


def test_a_person_ends_a_comparison(house: House) -> None:
    job = begin(house)
    house.store.activate("v0", by="a person")
    lend(house, job, 200, "worse")
    attempt(house, job)
    decision, record = decided(house, job)
    assert (decision, record.moved_by) == ("stopped", "a person")


def test_a_fault_and_a_cancellation_end_a_comparison(house: House) -> None:
    job = begin(house)

    def refuse(*arguments: object) -> object:
        raise RuntimeError("no second judge")

    with pytest.raises(RuntimeError):
        run_shadow(job, house.settings, lambda settings: StillModel(), refuse)  # type: ignore[arg-type]
    assert house.journal.get(job).error == "RuntimeError: no second judge"
    record = house.store.active()
    assert record.shadow == {} and "no second judge" in record.reason
    job = begin(house)
    house.journal.update(job, cancel_requested=True)
    attempt(house, job)
    assert (house.journal.get(job).status, house.store.active().shadow) == ("cancelled", {})


def test_too_few_images_end_a_comparison(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_job, "LONGEST_S", 0.0)
    job = begin(house)
    attempt(house, job)
    assert decided(house, job)[0] == "undecided"


def test_a_real_worker_runs_a_comparison_and_recovers_it(house: House) -> None:
    job = begin(house, enqueue=True)
    house.worker()
    wait_for("the job compares", lambda: house.journal.get(job).progress["phase"] == "compare")
    lend(house, job, 60, "worse")
    record = house.wait_ended(job)
    assert record.status == "finished" and record.result is not None and record.result["decision"] == "retreat"
    lost = begin(house)  # never enqueued: the worker finds it in the journal
    lend(house, lost, 60, "worse")
    assert house.wait_ended(lost).status == "finished"
    assert FUNCTIONS[SHADOW] == "worker.jobs.shadow"
