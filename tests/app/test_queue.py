"""Attacks on the queue's door: a Redis that answers and takes no job, and workers that say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.worker import SpawnWorker

from app import queue_state
from app.queue import ImproveQueue
from core.wire import RedisNames
from tests.support.redis_home import NO_MASTER, own_redis
from tests.support.serving import Server, serving, settings_in, wait_for


@pytest.fixture
def address() -> Iterator[str]:
    with own_redis() as url:
        yield url


def health(server: Server) -> dict[str, object]:
    ready = server.http.get("/health/ready")
    assert ready.status_code == 200  # images can be drawn
    body: dict[str, object] = ready.json()
    return body


FAULTS = {
    "read-only": (NO_MASTER, "read-only replica"),
    "full": (("--maxmemory", "1"), "memory is full"),
    "denied": (("--requirepass", "secret"), "SAFECB_REDIS_URL"),
    "refusing": (("--min-replicas-to-write", "1"), "NOREPLICAS"),
}


@pytest.mark.fault("F21")
@pytest.mark.parametrize("state", FAULTS)
def test_a_redis_that_takes_no_job_is_reported_by_health_and_job(model: Path, tmp_path: Path, state: str) -> None:
    options, reason = FAULTS[state]
    with own_redis(*options) as url, serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=url)) as server:
        wait_for("health reports it", lambda: health(server)["redis"] == state)
        assert reason in str(health(server)["redis_reason"])
        answer = server.post("/improve", {})
        assert answer.status_code == 202
        job = server.http.get(answer.headers["Location"])
        for body in (answer.json(), job.json(), server.http.get("/jobs").json()[0]):
            assert body["status"] == "queued"
            assert body["progress"]["message"].startswith("waits for Redis: ") and reason in body["progress"]["message"]
        assert server.draw().status_code == 200


@pytest.mark.fault("F21")
def test_what_is_wrong_with_redis_is_noticed_while_it_lasts(model: Path, tmp_path: Path, address: str) -> None:
    settings = settings_in(tmp_path, model, SAFECB_REDIS_URL=address)
    with Redis.from_url(address) as redis, serving(settings) as server:
        wait_for("Redis is of use", lambda: health(server)["redis"] == "ok")
        assert health(server)["redis_reason"] is None
        assert 0 < redis.ttl(RedisNames.of(settings).probe) <= 60
        job = server.post("/improve", {}).json()["links"]["self"]
        for unfit, fit, state in (
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read-only"),
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "full"),
            (("ACL", "SETUSER", "default", "-set"), ("ACL", "SETUSER", "default", "+set"), "denied"),
        ):
            redis.execute_command(*unfit)
            wait_for(f"it is {state}", lambda: health(server)["redis"] == state)  # noqa: B023
            assert server.http.get(job).json()["progress"]["message"].startswith("waits for Redis: ")
            redis.execute_command(*fit)
            wait_for("Redis is of use again", lambda: health(server)["redis"] == "ok")
            assert "Redis" not in server.http.get(job).json()["progress"]["message"]


@pytest.mark.fault("F21")
def test_a_redis_that_cannot_save_refuses_jobs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with own_redis("--save", "3600", "1") as url, Redis.from_url(url) as redis:
        (Path(url.removeprefix("unix://")).parent / "dump.rdb").mkdir()
        redis.set("a", "change")
        redis.bgsave()
        wait_for("saving has failed", lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
        queue = ImproveQueue(url)
        for _ in range(3):
            queue.poll()
        queue.close()
    assert queue.state.redis == "refusing" and "MISCONF" in str(queue.state.reason)
    assert len(caplog.messages) == 1 and "MISCONF" in caplog.text  # one line, however long it lasts


def test_an_error_of_the_put_itself_is_reported(tmp_path: Path, address: str) -> None:
    queue = ImproveQueue(address)
    queue.poll()
    assert queue.state.redis == "ok"
    with Redis.from_url(address) as redis:
        redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    queue.put("a-job")
    queue.close()
    assert queue.state.redis == "read-only"


@pytest.mark.fault("F22")
def test_a_silent_worker_is_reported_and_a_new_heartbeat_ends_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_state, "SILENT_S", 0.5)
    with Redis.from_url(address) as redis:
        queue = ImproveQueue(address)
        queue.poll()
        assert queue.state.worker.state == "heard"  # nobody has had the time to speak
        listened = queue.state.worker.since

        def becomes(state: str) -> bool:
            queue.poll()
            return queue.state.worker.state == state

        wait_for("nobody speaks", lambda: becomes("silent"))
        assert queue.state.worker.since == listened
        worker = SpawnWorker([Queue("improve", connection=redis)], connection=redis)
        worker.register_birth()  # type: ignore[no-untyped-call]
        assert becomes("heard")
        assert queue.state.worker.since > listened
        wait_for("it stops speaking", lambda: becomes("silent"))
        silence = f"no worker has been heard of since {queue.state.worker.since}"
        assert queue.state.message("queued", "") == silence
        assert queue.state.message("running", "round 1: judging") == f"round 1: judging; {silence}"
        worker.heartbeat()
        assert becomes("heard")
        redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert becomes("unknown")  # workers cannot write either
        queue.close()


@pytest.mark.fault("F22")
def test_without_a_worker_health_and_job_say_since_when(
    model: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_state, "SILENT_S", 0.5)
    with serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=address)) as server:
        job = server.post("/improve", {}).json()["links"]["self"]
        wait_for("health reports it", lambda: "silent" in str(health(server)["worker"]))
        since = server.service.queue.state.worker.since
        assert health(server)["worker"] == {"state": "silent", "since": since}
        body = server.http.get(job).json()
        assert body["status"] == "queued"
        assert body["progress"]["message"] == f"no worker has been heard of since {since}"
