"""Attacks on the worker: real Redis, real worker and job processes, killed at the worst moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rq import Queue
from rq.command import send_stop_job_command
from rq.executions import Execution
from rq.job import Job

from codebook.store import CodebookStore
from core.errors import BadInput, BadSetting, Conflict
from core.settings import Settings
from core.wire import ATTEMPTS, IMPROVE_FUNCTION, QUEUE, SPINNING, RedisNames
from records.flags import Flags
from records.image_log import KeptImage
from records.jobs.claim import claim, is_claimed
from tests.support.scripted import KNOWS_NO_WEAPONS, ScriptedJob, ScriptedLoop, StillModel
from tests.support.servers.house import ROOT, House, RedisProcess, redis_process
from tests.support.serving import PATIENCE_S, wait_for
from worker.allowed_job import AllowedJob
from worker.attempt import run
from worker.main import work
from worker.niceness import AUTOGROUP
from worker.progress import JournalProgress
from worker.recovery import MAX_ATTEMPTS, recover

WAITS, OVER = "waiting for a Redis that can be used", "Redis can be used again"


@pytest.fixture
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def house(tmp_path: Path, redis: RedisProcess) -> Iterator[House]:
    house = House(tmp_path, redis)
    yield house
    house.close()


def test_a_job_learns_from_the_same_flags_before_and_after_a_kill(house: House) -> None:
    flags = Flags(house.home / "flags.db", hours=1)
    image = KeptImage("1", "a knife", "v0", 1, True, "weapons", torch.tensor([1, 2]))
    flag = flags.add(image, "weapons", "", "somebody", review=False)
    job = house.job()
    house.worker()
    house.wait_begun(1)
    assert (flags.get(flag.id).state, flags.get(flag.id).job) == ("used", job)
    flags.add(replace(image, id="2", prompt="an axe"), None, "", "somebody", review=False)
    house.kill_job_process()
    house.allow(1)
    assert house.wait_ended(job).status == "finished"
    assert house.store.report("v1")["flagged"] == [["a knife", "weapons"]]


def test_a_job_publishes_each_round_and_tells_it(house: House) -> None:
    hints = house.redis.pubsub(ignore_subscribe_messages=True)
    hints.subscribe(RedisNames.of(house.settings).hints)
    house.allow(1, 2)
    job = house.job(rounds=2)
    house.worker()
    record = house.wait_ended(job)
    assert (record.status, record.error, record.attempt) == ("finished", None, 1)
    assessment = {"before": "v0", "after": "v2"}
    run = {"policy": "open", "second_judge": "beside", "covered": ["gore"], "self_judged": []}
    assert record.result == {"version": "v2", "start": "v0", "reason": "accepted", **run, "assessment": assessment}
    assert [(r["round"], r["version"]) for r in record.rounds] == [(1, "v1"), (2, "v2")]
    assert [m.parent for m in house.store.versions() if m.job == job] == ["v0", "v1"]
    assert house.store.active().version == "v2"
    assert record.progress["phase"] == "draw" and record.progress["done"] == record.progress["total"] == 2
    kinds = [event["event"] for event in house.journal.events(job, 0)]
    assert kinds.count("round") == 2 and set(kinds) == {"progress", "round"}
    heard: list[bytes] = []

    def both_heard() -> bool:
        heard.extend(m["data"] for m in [hints.get_message()] if m)
        return len(heard) == 2

    wait_for("both hints", both_heard)
    assert heard == [b"v1", b"v2"]
    hints.close()


def test_without_activate_nothing_becomes_active(house: House) -> None:
    house.allow(1)
    job = house.job(activate=False)
    house.worker()
    result = house.wait_ended(job).result
    assert result is not None and result["version"] == "v1"
    assert house.store.active().version == "v0"


@pytest.mark.parametrize(("judge", "canary"), [(None, "v2"), (KNOWS_NO_WEAPONS, "")])
def test_with_canary_the_last_version_enters_its_first_step(
    house: House, monkeypatch: pytest.MonkeyPatch, judge: str | None, canary: str
) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(house.home))
    house.allow(1, 2)
    job = house.job(rounds=2, activate="canary", second_judge=judge, enqueue=False)
    run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
    record = house.store.active()
    assert house.published(job) == [1, 2]
    assert (record.version, record.canary) == ("v0", canary)
    assert record.traffic == ({"v0": 0.99, "v2": 0.01} if canary else {})


def test_a_canary_of_a_job_yields_to_a_move_in_between(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(house.home))
    house.allow(1, 2)
    first = house.job(activate=False, enqueue=False)
    run(first, house.settings, lambda settings: StillModel(), ScriptedLoop())
    house.store.begin_shadow("v1", 0.5, "0123", by="a person")
    for activate in (True, "canary"):
        job = house.job(activate=activate, seed=2, enqueue=False)
        run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
        assert house.store.active().moved_by == "a person"


@pytest.mark.parametrize(("accepts", "active"), [(False, "v0"), (True, "v2")])
def test_what_the_second_judge_does_not_know_is_activated_only_if_accepted(
    house: House, accepts: bool, active: str
) -> None:
    house.allow(1, 2)
    job = house.job(rounds=2, second_judge=KNOWS_NO_WEAPONS, accept_self_judged=accepts)
    house.worker()
    result = house.wait_ended(job).result
    assert result is not None and (result["version"], result["self_judged"]) == ("v2", ["weapons"])
    assert house.store.report("v1")["self_judged"] == ["weapons"]
    assert house.store.active().version == active


def test_a_killed_job_process_is_resumed_and_publishes_once(house: House) -> None:
    house.allow(1)
    job = house.job(rounds=3)
    house.worker()
    house.wait_begun(2)
    house.kill_job_process()
    house.allow(2, 3)
    record = house.wait_ended(job)
    assert (record.status, record.attempt) == ("finished", 2)
    assert house.published(job) == [1, 2, 3]
    assert [r["round"] for r in record.rounds] == [1, 2, 3]
    assert house.store.active().version == "v3"


def test_worker_and_job_process_killed_are_resumed_by_the_next_worker(house: House) -> None:
    house.allow(1)
    job = house.job(rounds=2)
    worker = house.worker()
    house.wait_begun(2)
    worker.kill()
    house.kill_job_process()
    worker.wait()
    house.allow(2)
    house.worker()
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("finished", 2, [1, 2])


def test_a_job_that_is_starting_is_not_taken_for_lost(house: House) -> None:
    """Its process takes seconds to begin the attempt; other workers look for lost jobs meanwhile."""
    job = house.job()
    house.worker()
    wait_for("a worker takes the job", lambda: house.queue.get_job_ids() == [])
    begun = house.home / "begun-1"
    while not begun.exists():
        recover(house.journal, house.queue, ScriptedJob.functions)
        assert house.queue.get_job_ids() == []
        time.sleep(0.05)
    house.allow(1)
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("finished", 1, [1])
    assert "left after attempt" not in house.output


def test_an_orphan_job_process_finishes_alone(house: House) -> None:
    job = house.job()
    worker = house.worker()
    house.wait_begun(1)
    environ = Path(f"/proc/{house.job_process()}/environ").read_bytes().split(b"\0")
    assert "=".join(SPINNING).encode() in environ  # threads of a job that wait leave the cores to others
    worker.kill()
    worker.wait()
    recover(house.journal, house.queue, ScriptedJob.functions)  # what the next worker does first
    assert house.queue.get_job_ids() == []
    house.allow(1)
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("finished", 1, [1])


def test_an_overtaken_attempt_neither_publishes_nor_writes(house: House) -> None:
    job = house.job()
    worker = house.worker()
    house.wait_begun(1)
    worker.kill()
    worker.wait()
    os.kill(house.job_process(), signal.SIGSTOP)  # frozen, as on a stalled disk: alive, and blind to what comes
    house.journal.begin_attempt(job)
    before = house.journal.get(job)
    house.allow(1)
    os.kill(house.job_process(), signal.SIGCONT)
    wait_for("the stale job process is gone", lambda: not is_claimed(house.journal.path(job), 1))
    assert (house.journal.get(job), house.published(job)) == (before, [])
    house.worker()  # brings the job back: attempt 2 has no living process either
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("finished", 3, [1])


def test_each_write_of_a_stale_attempt_is_refused(house: House) -> None:
    job = house.job(enqueue=False)
    watch = JournalProgress(house.journal, job, house.journal.begin_attempt(job))
    house.journal.begin_attempt(job)
    before = house.journal.get(job)
    with pytest.raises(Conflict):
        watch.report("draw", 0, 1, 1)
    with pytest.raises(Conflict):
        watch.round({"round": 1})
    with pytest.raises(Conflict):
        watch.end("finished", result={})
    assert house.journal.get(job) == before
    assert house.journal.events(job, 0) == []


def test_stop_command_ends_cancelled(house: House) -> None:
    job = house.job()
    house.worker()
    house.wait_begun(1)
    assert os.getsid(house.job_process()) == house.job_process() or not AUTOGROUP.exists()
    os.kill(house.job_process(), signal.SIGSTOP)  # it cannot hear the flag: only the kill ends it
    house.journal.update(job, cancel_requested=True)
    send_stop_job_command(house.redis, job, serializer="json")
    record = house.wait_ended(job)
    assert (record.status, record.result, house.published(job)) == ("cancelled", None, [])


def test_cancel_flag_alone_ends_a_running_job_and_what_it_has_published_is_named(house: House) -> None:
    house.allow(1)
    job = house.job(rounds=2)
    house.worker()
    house.wait_begun(2)
    house.journal.update(job, cancel_requested=True)
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("cancelled", 1, [1])
    assert record.result == {"version": "v1", "start": "v0", "reason": "cancelled"}


def job_that_dies(house: House, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> str:
    """A job of one round whose attempt, in this process, dies as it calls a method."""

    def crash(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("SAFECB_HOME", str(house.home))
    house.allow(1)
    job = house.job(enqueue=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, crash)
        run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
    return job


def test_a_version_of_an_attempt_that_died_is_named_though_the_job_is_cancelled(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_that_dies(house, monkeypatch, JournalProgress, "round")
    house.journal.update(job, cancel_requested=True)
    recover(house.journal, house.queue, ScriptedJob.functions)
    assert house.queue.get_job_ids() == [job]  # only another attempt can say how it ended
    assert house.journal.get(job).progress["message"] == "waits for attempt 2, which says how it ended"
    run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
    record = house.journal.get(job)
    assert (record.status, record.rounds, house.published(job)) == ("cancelled", [], [1])
    assert record.result == {"version": "v1", "start": "v0", "reason": "cancelled"}


def test_cancel_while_queued_draws_nothing(house: House) -> None:
    job = house.job()
    house.journal.update(job, cancel_requested=True)
    house.worker()
    assert house.wait_ended(job).status == "cancelled"
    assert not (house.home / "job_process.pid").exists()
    assert not house.settings.store.exists()


def test_a_redis_restart_in_the_middle_loses_nothing(house: House) -> None:
    house.allow(1)
    job = house.job(rounds=2)
    worker = house.worker()
    house.wait_begun(2)
    house.redis_process.stop()
    house.allow(2)  # the job process goes on without Redis, and publishes
    record = house.wait_ended(job)
    assert (record.status, house.published(job)) == ("finished", [1, 2])
    wait_for("the worker waits", lambda: house.output.count(WAITS) == 1)
    house.redis_process.start()
    second = house.job(rounds=1)
    assert house.wait_ended(second).status == "finished"
    assert house.journal.get(job) == record
    assert worker.poll() is None and "Traceback" not in house.output


FAULTS = {  # what makes a Redis unfit, what mends it, and what it says of itself
    "read-only": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only replica"),
    "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "maxmemory"),
    "locked": (("CONFIG", "SET", "requirepass", "secret"), ("CONFIG", "SET", "requirepass", ""), "authenticate"),
    "no writes": (("ACL", "SETUSER", "default", "-set"), ("ACL", "SETUSER", "default", "+set"), "no permissions"),
    "no queue": (("ACL", "SETUSER", "default", "-blpop"), ("ACL", "SETUSER", "default", "+blpop"), "no permissions"),
}


@pytest.mark.fault("F21")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_waits_with_one_line_for_a_redis_that_can_be_used(house: House, fault: str) -> None:
    unfit, fit, reason = FAULTS[fault]
    house.allow(1)
    house.redis.execute_command(*unfit)
    job = house.job(enqueue=False)
    worker = house.worker()
    wait_for("the worker waits", lambda: WAITS in house.output)
    tries = house.connections()
    wait_for("it has tried again several times", lambda: house.connections() >= tries + 4)
    assert (house.output.count(WAITS), house.output.count(OVER), worker.poll()) == (1, 0, None)
    assert reason in house.output
    house.redis.execute_command(*fit)
    assert house.wait_ended(job).status == "finished"
    wait_for("the worker says so", lambda: OVER in house.output)
    assert (house.output.count(WAITS), house.output.count(OVER), worker.poll()) == (1, 1, None)
    assert "Traceback" not in house.output and "secret" not in house.output


@pytest.mark.fault("F21")
@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_a_redis_that_becomes_unfit_under_a_job_and_an_idle_worker(house: House, fault: str) -> None:
    unfit, fit, reason = FAULTS[fault]
    house.allow(1)
    job = house.job(rounds=2)
    worker = house.worker()
    house.wait_begun(2)
    house.redis.execute_command(*unfit)
    house.allow(2)  # the job needs no Redis
    assert house.wait_ended(job).status == "finished"
    wait_for("the worker waits", lambda: WAITS in house.output)
    assert reason in house.output
    house.redis.execute_command(*fit)
    wait_for("the worker says so", lambda: OVER in house.output)
    second = house.job(rounds=1)
    assert house.wait_ended(second).status == "finished"
    assert (house.output.count(WAITS), house.output.count(OVER), worker.poll()) == (1, 1, None)
    assert "Traceback" not in house.output


@pytest.mark.fault("F23")
def test_a_job_that_could_not_reach_redis_by_its_address_is_not_begun(house: House) -> None:
    house.allow(1)
    worker = house.worker()
    wait_for("the worker listens", lambda: "Listening" in house.output)
    house.connections()  # the test has one too, from now on
    house.redis_process.socket.rename(house.redis_process.folder / "elsewhere")  # connections there are live on
    job = house.job()
    wait_for("the worker waits", lambda: WAITS in house.output)
    (house.redis_process.folder / "elsewhere").rename(house.redis_process.socket)
    assert house.wait_ended(job).status == "finished"
    assert worker.poll() is None and "Traceback" not in house.output


def test_a_queue_that_forgot_everything_is_filled_again(house: House) -> None:
    house.allow(1)
    job = house.job()
    house.redis.flushall()
    house.worker()
    assert house.wait_ended(job).status == "finished"


def test_sigterm_stops_at_once_and_the_job_goes_on_later(house: House) -> None:
    job = house.job()
    worker = house.worker()
    house.wait_begun(1)
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0
    assert not is_claimed(house.journal.path(job), 1)
    house.allow(1)
    house.worker()
    record = house.wait_ended(job)
    assert (record.status, record.attempt, house.published(job)) == ("finished", 2, [1])


def test_a_job_that_always_dies_is_given_up(house: House) -> None:
    job = house.job(enqueue=False)
    for _ in range(MAX_ATTEMPTS):
        recover(house.journal, house.queue, ScriptedJob.functions)
        assert house.queue.get_job_ids() == [job]
        house.queue.empty()  # type: ignore[no-untyped-call]
        house.journal.begin_attempt(job)
    recover(house.journal, house.queue, ScriptedJob.functions)
    record = house.journal.get(job)
    assert record.status == "failed" and "gave up" in str(record.error)
    assert house.queue.get_job_ids() == []


def test_a_job_that_an_earlier_release_has_enqueued_is_not_lost(house: House) -> None:
    """Its queue bore no ID of the home. No worker takes from it any more; the journal has the job."""
    job = house.job(enqueue=False)
    before = Queue(QUEUE, connection=house.redis, serializer="json")
    before.enqueue_call(IMPROVE_FUNCTION, args=(job,), job_id=job, meta={ATTEMPTS: 0})
    recover(house.journal, house.queue, ScriptedJob.functions)
    assert house.queue.get_job_ids() == [job] and house.queue.name != QUEUE


def test_homes_on_one_redis_leave_each_others_jobs_alone(house: House, tmp_path: Path) -> None:
    stranger = House(tmp_path / "stranger", house.redis_process)
    try:
        job = house.job()
        stranger.worker()
        wait_for("the stranger works", lambda: "istening" in stranger.output)
        recover(stranger.journal, stranger.queue, ScriptedJob.functions)
        assert house.queue.get_job_ids() == [job] and stranger.queue.get_job_ids() == []
        house.allow(1)
        house.worker()
        assert house.wait_ended(job).status == "finished" and job not in stranger.output
    finally:
        stranger.close()


def test_recovery_enqueues_once(house: House) -> None:
    job = house.job(enqueue=False)
    for _ in range(3):
        recover(house.journal, house.queue, ScriptedJob.functions)
    assert house.queue.get_job_ids() == [job]


def test_a_job_whose_execution_has_expired_is_enqueued_again(house: House) -> None:
    """RQ lists the execution of a worker that died for a minute after its row is gone."""
    job = house.job()
    house.journal.begin_attempt(job)
    row = house.queue.fetch_job(job)
    house.queue.empty()  # type: ignore[no-untyped-call]
    assert row is not None
    row.save()
    with house.queue.connection.pipeline() as pipeline:
        execution = Execution.create(row, ttl=1, pipeline=pipeline)
        pipeline.execute()
    wait_for("the execution expires", lambda: not house.queue.connection.exists(execution.key))
    assert row.execution_registry.get_execution_ids() == [execution.id]
    recover(house.journal, house.queue, ScriptedJob.functions)
    assert house.queue.get_job_ids() == [job]


def test_a_broken_loop_fails_the_job_with_its_reason(house: House) -> None:
    job = house.job(prompts=["break"])
    house.worker()
    record = house.wait_ended(job)
    assert (record.status, record.error, record.attempt) == ("failed", "RuntimeError: the loop broke", 1)
    assert record.result is None


def test_what_a_job_had_published_is_named_though_it_fails(house: House) -> None:
    house.allow(1)
    job = house.job(prompts=["break later"])
    house.worker()
    record = house.wait_ended(job)
    assert (record.status, record.error, house.published(job)) == ("failed", "RuntimeError: the loop broke", [1])
    assert record.result == {"version": "v1", "start": "v0", "reason": "failed"}


def test_delivered_twice_runs_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(house.home))
    house.allow(1)
    job = house.job(enqueue=False)
    for _ in range(2):
        run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
    assert (house.journal.get(job).attempt, house.published(job)) == (1, [1])


def test_an_operators_rollback_stands(house: House) -> None:
    house.allow(1)
    job = house.job(rounds=2)
    house.worker()
    house.wait_begun(2)
    house.store.rollback(by="operator")
    house.kill_job_process()  # the replay of round 1 must not activate it again either
    house.allow(2)
    assert house.wait_ended(job).status == "finished"
    assert house.published(job) == [1, 2]
    assert house.store.active().version == "v0"


def test_an_activation_that_a_crash_prevented_is_made_up_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_that_dies(house, monkeypatch, CodebookStore, "activate")
    assert (house.published(job), house.store.active().version) == ([1], "v0")
    run(job, house.settings, lambda settings: StillModel(), ScriptedLoop())
    assert (house.published(job), house.store.active().version) == ([1], "v1")


@pytest.mark.parametrize("function", ["os.system", "worker.jobs.run", "tests.support.scripted.improve.__call__"])
def test_no_other_function_runs(house: House, function: str, tmp_path: Path) -> None:
    queue = Queue(QUEUE, connection=house.redis, serializer="json")
    trap = tmp_path / "trap"
    job = queue.enqueue_call(function, args=(f"touch {trap}",), on_failure=None)
    mine = AllowedJob.fetch(job.id, connection=house.redis, serializer="json")
    with pytest.raises(BadInput, match=r"worker\.jobs\.improve"):
        mine.perform()
    assert not trap.exists()


def test_a_real_worker_refuses_a_foreign_job_and_its_call_backs(house: House) -> None:
    trap = house.home / "trap"
    queue = Queue(RedisNames.of(house.settings).queue, connection=house.redis, serializer="json")
    foreign = queue.enqueue_call("os.system", (f"touch {trap}",))
    house.redis.hset(foreign.key, mapping={"failure_callback_name": "tests.no_such_module.call"})
    house.allow(1)
    house.worker()
    job = house.job()
    assert house.wait_ended(job).status == "finished"
    assert Job.fetch(foreign.id, connection=house.redis, serializer="json").is_failed
    assert not trap.exists()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        f"from pathlib import Path; from records.jobs.claim import claim\nwith claim(Path({str(tmp_path)!r}), 1):\n"
    )
    script += "    print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert is_claimed(tmp_path, 1) and not is_claimed(tmp_path, 2)
        holder.kill()
    assert not is_claimed(tmp_path, 1)


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    with claim(tmp_path, 3):
        assert is_claimed(tmp_path, 3)
    assert not is_claimed(tmp_path, 3)


def test_a_setting_that_no_worker_can_work_with_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="SAFECB_REDIS_URL"):
        work(Settings.from_environ({"SAFECB_HOME": str(tmp_path)}))
    with pytest.raises(BadSetting, match=r"SAFECB_SECOND_JUDGE.*only measures"):
        work(Settings.from_environ({"SAFECB_HOME": str(tmp_path), "SAFECB_SECOND_JUDGE": "referee"}))
