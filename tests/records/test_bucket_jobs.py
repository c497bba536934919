"""Jobs in a bucket: machines with homes of their own have one journal, one job that runs, and one attempt of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from core.bucket.bucket import AWAY_S, Bucket
from core.errors import BadInput, Conflict, NoBucket, NotFound
from records.jobs import signs_of_life
from records.jobs.bucket_jobs import BucketJobs
from records.jobs.signs_of_life import SILENT_S, SignsOfLife
from records.journal import IMPROVE, Journal
from tests.support.servers.s3 import S3, Line
from tests.support.serving import wait_for

Machine = Callable[[], Journal]


@pytest.fixture
def url(s3: S3, line: Line) -> str:
    return s3.bucket()


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Machine:
    """Makes the journal of another machine, with a home of its own, on the one bucket."""
    numbers = count()
    return lambda: Journal(BucketJobs(Bucket(url), tmp_path / f"machine-{next(numbers)}"))


def test_what_one_machine_writes_the_other_reads(machine: Machine) -> None:
    server, worker = machine(), machine()
    job = server.create(IMPROVE, {"seed": 1})
    assert worker.get(job.id) == job and worker.list() == [job] and worker.running() == job
    attempt = worker.begin_attempt(job.id)
    worker.update(job.id, attempt=attempt, rounds=[{"round": 1}])
    assert worker.append_event(job.id, {"event": "round"}) == 1
    assert server.append_event(job.id, {"event": "progress"}) == 2
    assert [event["event"] for event in server.events(job.id, 0)] == ["round", "progress"]
    assert [event["id"] for event in worker.events(job.id, 1)] == [2]
    worker.update(job.id, attempt=attempt, status="finished")
    ended = server.get(job.id)
    assert (ended.status, ended.rounds, ended.attempt) == ("finished", [{"round": 1}], 1)
    assert server.running() is None and machine().list() == [ended]
    with pytest.raises(Conflict, match="has ended"):
        server.update(job.id, cancel_requested=True)


def test_what_is_not_there_is_named(machine: Machine) -> None:
    journal = machine()
    for use_of in (lambda: journal.get("0" * 24), lambda: journal.events("x", 0), lambda: journal.path("..")):
        with pytest.raises(NotFound, match="there is no job"):
            use_of()
    with pytest.raises(BadInput):
        journal.create(IMPROVE, {"seed": float("nan")})


def test_one_of_many_simultaneous_jobs_is_made(machine: Machine) -> None:
    machines = [machine() for _ in range(6)]

    def create(journal: Journal) -> str | None:
        try:
            return journal.create(IMPROVE, {}).id
        except Conflict as other:
            assert "only one runs at a time" in str(other)
            return None

    with ThreadPoolExecutor(6) as pool:
        ids = [id for id in pool.map(create, machines) if id is not None]
    assert [job.id for job in machines[0].list()] == ids and len(ids) == 1


def test_attempts_are_numbered_once_and_the_stale_one_writes_nothing(machine: Machine) -> None:
    machines = [machine() for _ in range(4)]
    job = machines[0].create(IMPROVE, {})
    with ThreadPoolExecutor(4) as pool:
        attempts = list(pool.map(lambda journal: journal.begin_attempt(job.id), machines))
    assert sorted(attempts) == [1, 2, 3, 4]
    stale = attempts.index(1)
    with pytest.raises(Conflict, match="attempt 4 has taken over"):
        machines[stale].update(job.id, attempt=1, rounds=[])


def test_the_first_attempt_decides_for_all(machine: Machine) -> None:
    one, other = machine(), machine()
    job = one.create(IMPROVE, {})
    assert one.once(job.id, "start", lambda: {"version": "v1"}) == {"version": "v1"}
    assert other.once(job.id, "start", lambda: {"version": "v2"}) == {"version": "v1"}


def test_a_live_attempt_is_seen_from_elsewhere_and_a_silent_one_is_declared_dead(
    machine: Machine, url: str, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "BEAT_S", 0.05)
    worker, server, now = machine(), machine(), [0.0]
    job = worker.create(IMPROVE, {})
    assert not server.is_claimed(job.id, 0)
    attempt = worker.begin_attempt(job.id)
    watcher = SignsOfLife(Bucket(url), lambda: now[0])
    with worker.claim(job.id, attempt):
        assert worker.is_claimed(job.id, attempt) and server.is_claimed(job.id, attempt)
        for _ in range(3):  # the sign changes, however much time passes
            now[0] += 2 * SILENT_S
            before = Bucket(url).read(f"job/{job.id}/alive-1")
            wait_for("another sign", lambda seen=before: Bucket(url).read(f"job/{job.id}/alive-1") != seen)  # type: ignore[misc]
            assert watcher.shown(job.id, attempt)
    assert watcher.shown(job.id, attempt)  # the last sign, perhaps not seen before
    now[0] += SILENT_S - 1
    assert watcher.shown(job.id, attempt)
    line.cut = True
    with pytest.raises(NoBucket):
        watcher.shown(job.id, attempt)
    line.cut = False
    time.sleep(2 * AWAY_S)
    now[0] += 2 * SILENT_S  # the bucket was away: what was seen before proves nothing
    assert watcher.shown(job.id, attempt)
    now[0] += SILENT_S
    assert not watcher.shown(job.id, attempt)
    assert not server.is_claimed(job.id, attempt)  # all agree
    assert server.is_claimed(job.id, server.begin_attempt(job.id))  # of the next one nothing is known yet


def test_a_dead_attempt_is_known_on_its_machine_immediately_and_then_elsewhere(machine: Machine) -> None:
    worker, server = machine(), machine()
    job = worker.create(IMPROVE, {})
    attempt = worker.begin_attempt(job.id)
    with worker.claim(job.id, attempt):
        assert worker.is_claimed(job.id, attempt) and server.is_claimed(job.id, attempt)
    assert not worker.is_claimed(job.id, attempt) and not server.is_claimed(job.id, attempt)


def test_a_job_outlasts_a_cut_of_its_bucket(url: str, line: Line, tmp_path: Path) -> None:
    journal = Journal(BucketJobs(Bucket(url, patience=30), tmp_path))
    job = journal.create(IMPROVE, {})
    line.cut = True
    with ThreadPoolExecutor() as pool:
        update = pool.submit(journal.update, job.id, cancel_requested=True)
        line.cut = False
        assert update.result().cancel_requested
