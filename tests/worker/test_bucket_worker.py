"""Improve jobs on several machines: real workers with homes of their own, one bucket, one Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.bucket.bucket import Bucket
from core.wire import RedisNames
from records.bucket_flags import open_flags
from records.image_log import KeptImage
from records.jobs.signs_of_life import SILENT_S, SignsOfLife
from tests.support.servers.house import House, RedisProcess, redis_process
from tests.support.servers.s3 import S3, Line
from tests.support.serving import wait_for

Machines = tuple[House, House]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def machines(tmp_path: Path, redis: RedisProcess, s3: S3, line: Line) -> Iterator[Machines]:
    url = s3.bucket()
    houses = House(tmp_path / "one", redis, SAFECB_STORE=url), House(tmp_path / "other", redis, SAFECB_STORE=url)
    yield houses
    for house in houses:
        house.close()


def declare_dead(house: House, job: str, attempt: int) -> None:
    """What a watcher does that has seen the same sign of life for a minute."""
    assert house.settings.bucket is not None
    now = [0.0]
    watcher = SignsOfLife(Bucket(house.settings.bucket), lambda: now[0])
    assert watcher.shown(job, attempt)
    now[0] += SILENT_S
    assert not watcher.shown(job, attempt)


def test_a_worker_elsewhere_does_the_job_of_a_server_here(machines: Machines) -> None:
    here, there = machines
    image = KeptImage("1", "a knife", "v0", 1, True, "weapons", torch.tensor([1, 2]))
    flag = open_flags(here.settings).add(image, "weapons", "", "somebody", review=False)
    there.allow(1)
    job = here.job()
    there.worker()
    record = here.wait_ended(job)
    assert (record.status, record.error, record.attempt) == ("finished", None, 1)
    assert here.published(job) == [1] and here.store.active().version == "v1"
    assert here.store.report("v1")["flagged"] == [["a knife", "weapons"]]
    assert open_flags(here.settings).get(flag.id).job == job
    assert {event["event"] for event in here.journal.events(job, 0)} == {"progress", "round"}


def test_a_machine_that_dies_is_followed_by_another_and_each_round_is_published_once(machines: Machines) -> None:
    here, there = machines
    here.allow(1)
    job = here.job(rounds=2)
    worker = here.worker()
    here.wait_begun(2)
    worker.kill()
    here.kill_job_process()
    worker.wait()
    assert there.journal.is_claimed(job, 1)  # of another machine nothing is known at first
    declare_dead(there, job, 1)
    there.allow(1, 2)
    there.worker()
    record = there.wait_ended(job)
    assert (record.status, record.attempt, there.published(job)) == ("finished", 2, [1, 2])
    assert here.store.active().version == "v2"


def test_a_machine_that_was_cut_off_writes_nothing_more(machines: Machines) -> None:
    here, there = machines
    job = here.job()
    worker = here.worker()
    here.wait_begun(1)
    declare_dead(there, job, 1)
    there.allow(1)
    there.worker()
    record = there.wait_ended(job)
    assert (record.status, record.attempt, there.published(job)) == ("finished", 2, [1])
    here.allow(1)  # it comes back, and finds the job done
    wait_for("the stale attempt is gone", lambda: not here.journal.is_claimed(job, 1))
    assert (there.journal.get(job), there.published(job)) == (record, [1])
    assert worker.poll() is None


def test_a_bucket_that_is_away_stops_no_job(machines: Machines, line: Line) -> None:
    here, _ = machines
    job = here.job()
    here.worker()
    here.wait_begun(1)
    line.cut = True
    here.allow(1)
    time.sleep(3.0)
    line.cut = False
    record = here.wait_ended(job)
    assert (record.status, record.attempt, here.published(job)) == ("finished", 1, [1])


def test_deployments_on_one_redis_leave_each_others_jobs_alone(machines: Machines, tmp_path: Path) -> None:
    here, _ = machines
    stranger = House(tmp_path / "stranger", here.redis_process)
    try:
        job = here.job()
        assert RedisNames.of(here.settings).queue != RedisNames.of(stranger.settings).queue
        stranger.worker()
        wait_for("the stranger works", lambda: "Listening" in stranger.output or "listening" in stranger.output)
        assert here.queue.get_job_ids() == [job]
    finally:
        stranger.close()
