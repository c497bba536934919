"""Attacks on /improve and /jobs, with a real Redis: one job at a time, nothing lost, nothing run that was cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from rq import Queue

from cli.redis_server import EmbeddedRedis
from core.wire import RedisNames
from tests.support.redis_home import embedded_redis
from tests.support.serving import Server, serving, settings_in, wait_for
from worker.allowed_job import AllowedJob
from worker.recovery import recover


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with embedded_redis(tmp_path) as redis:
        yield redis


@pytest.fixture
def server(model: Path, tmp_path: Path, redis: EmbeddedRedis) -> Iterator[Server]:
    with serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=redis.url)) as server:
        yield server


def test_improve_is_accepted_and_enqueued_for_the_worker(server: Server, redis: EmbeddedRedis) -> None:
    answer = server.post("/improve", {"categories": ["weapons"], "max_rounds": 2, "seed": 3})
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == body["links"]["self"] == f"/jobs/{body['id']}"
    assert body["status"] == "queued"
    defaults = {
        "prompts": None,
        "policy": None,
        "second_judge": None,
        "accept_self_judged": False,
        "budget": None,
        "activate": True,
    }
    assert body["request"] == {**defaults, "categories": ["weapons"], "max_rounds": 2, "seed": 3}
    assert server.http.get(answer.headers["Location"]).json() == body
    with Redis.from_url(redis.url) as connection:
        queue = RedisNames.of(server.service.settings).queue
        waiting = Queue(queue, connection=connection, job_class=AllowedJob, serializer="json")
        assert waiting.get_job_ids() == [body["id"]]
        job = waiting.fetch_job(body["id"])
        assert job is not None and tuple(job.args) == (body["id"],)
        assert job.func_name == AllowedJob.functions["improve"]


def test_one_improve_job_at_a_time(server: Server) -> None:
    with ThreadPoolExecutor() as callers:
        answers = list(callers.map(lambda _: server.post("/improve", {}), range(6)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == 1
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert len(refused) == 5
    assert all(accepted[0].json()["id"] in problem["detail"] for problem in refused)
    assert len(server.http.get("/jobs").json()) == 1


def test_a_waiting_job_is_cancelled_at_once_and_the_next_may_come(server: Server) -> None:
    job = server.post("/improve", {}).json()["id"]
    answer = server.http.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert server.http.delete(f"/jobs/{job}").status_code == 409
    assert server.post("/improve", {}).status_code == 202
    assert [job["status"] for job in server.http.get("/jobs").json()] == ["queued", "cancelled"]


def test_a_running_job_is_asked_to_end(server: Server) -> None:
    job = server.post("/improve", {}).json()["id"]
    server.service.journal.begin_attempt(job)
    answer = server.http.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.json()["status"], answer.json()["cancel_requested"]) == (202, "running", True)


def test_a_finished_job_links_its_report(server: Server) -> None:
    job = server.post("/improve", {}).json()["id"]
    journal = server.service.journal
    fence = journal.begin_attempt(job)
    progress = {"phase": "draw", "done": 3, "total": 9, "round": 1, "message": "round 1: draw"}
    journal.update(job, attempt=fence, progress=progress, rounds=[{"round": 1}])
    assert server.http.get(f"/jobs/{job}").json()["progress"] == progress
    journal.update(job, attempt=fence, status="finished", result={"version": "v1"})
    body = server.http.get(f"/jobs/{job}").json()
    assert (body["status"], body["links"]["report"]) == ("finished", "/codebooks/v1/report")


def test_a_hint_is_heard(server: Server, redis: EmbeddedRedis) -> None:
    with Redis.from_url(redis.url) as connection:
        channel = RedisNames.of(server.service.settings).hints
        wait_for("the server listens", lambda: connection.publish(channel, "v1") == 1)
    wait_for("health reports it", lambda: server.http.get("/health/ready").json()["redis"] == "ok")


def test_without_redis_a_job_is_kept_and_found_by_the_worker(model: Path, tmp_path: Path) -> None:
    gone = settings_in(tmp_path, model, SAFECB_REDIS_URL=f"unix://{tmp_path}/none.sock")
    with serving(gone) as server:
        assert server.draw().status_code == 200
        ready = server.http.get("/health/ready")
        assert (ready.status_code, ready.json()["redis"]) == (200, "unreachable")
        answer = server.post("/improve", {})
        assert (answer.status_code, answer.json()["progress"]["message"]) == (
            202,
            "waits for Redis: it does not answer",
        )
        journal, job = server.service.journal, answer.json()["id"]
    with embedded_redis(tmp_path) as redis, Redis.from_url(redis.url) as connection:
        waiting = Queue(RedisNames.of(gone).queue, connection=connection, serializer="json")
        recover(journal, waiting, AllowedJob.functions)
        assert waiting.get_job_ids() == [job]


def test_a_job_is_followed_from_its_beginning_to_its_end(server: Server) -> None:
    job = server.post("/improve", {}).json()
    journal, id = server.service.journal, job["id"]
    fence = journal.begin_attempt(id)
    for done in range(3):
        journal.append_event(id, {"event": "progress", "done": done})
    with server.http.stream("GET", job["links"]["events"]) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = _events(stream.iter_lines())
        assert [next(events)[1]["done"] for _ in range(3)] == [0, 1, 2]
        journal.append_event(id, {"event": "round", "round": 1})  # while a client listens
        assert next(events)[1]["round"] == 1
        journal.update(id, attempt=fence, status="finished", result={"version": None})
        name, end = next(events)
        assert (name, end["id"], end["status"]) == ("end", id, "finished")
        assert list(events) == []


def test_a_lost_stream_of_events_goes_on_where_it_was(server: Server) -> None:
    job = server.post("/improve", {}).json()
    for done in range(3):
        server.service.journal.append_event(job["id"], {"event": "progress", "done": done})
    server.http.delete(job["links"]["self"])
    answer = server.http.get(job["links"]["events"], headers={"Last-Event-ID": "2"})
    events = list(_events(iter(answer.text.splitlines())))
    assert [(name, event.get("done", event.get("status"))) for name, event in events] == [
        ("progress", 2),
        ("end", "cancelled"),
    ]
    assert server.http.get(job["links"]["events"], headers={"Last-Event-ID": "two"}).status_code == 422
    assert server.http.get("/jobs/nobody/events").status_code == 404


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The (name, data) of server-sent events."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_whoever_has_every_event_gets_no_more(server: Server) -> None:
    id, journal = server.post("/improve", {"policy": "open"}).json()["id"], server.service.journal
    for done in range(2):
        journal.append_event(id, {"event": "progress", "done": done})
    server.http.delete(f"/jobs/{id}")
    text = server.http.get(f"/jobs/{id}/events").text
    numbers = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
    assert numbers == [*range(1, len(numbers) + 1)] and "event: end" in text.rpartition("\n\n")[0].rpartition("\n\n")[2]

    def after(number: int) -> httpx2.Response:
        return server.http.get(f"/jobs/{id}/events", headers={"Last-Event-ID": str(number)})

    assert after(numbers[-2]).text.count("event: ") == 1  # `end` alone: it may have been lost
    ended = after(numbers[-1])
    assert (ended.status_code, ended.content) == (204, b"")


def test_jobs_are_listed_in_pages(server: Server) -> None:
    ids = list[str]()
    for _ in range(5):
        id = server.post("/improve", {"policy": "open"}).json()["id"]
        server.http.delete(f"/jobs/{id}")
        ids.insert(0, id)

    def listed(**query: str | int) -> list[str]:
        return [job["id"] for job in server.http.get("/jobs", params=query).json()]

    assert listed() == ids and listed(limit=2) == ids[:2] and listed(limit=2, before=ids[1]) == ids[2:4]
    assert listed(before=ids[-1]) == []
    assert server.http.get("/jobs?limit=0").status_code == server.http.get("/jobs?limit=1001").status_code == 422


def test_a_job_whose_progress_has_no_message_is_listed(server: Server) -> None:
    journal = server.service.journal
    id = journal.create("improve", {}).id
    journal.update(id, attempt=journal.begin_attempt(id), progress={"phase": "pairs"})
    answer = server.http.get("/jobs")
    assert answer.status_code == 200 and answer.json()[0]["progress"]["phase"] == "pairs"
