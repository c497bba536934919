"""Idempotency-Key: one execution whatever comes, the first answer for all, and no key that is lost or mixed up."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.errors import BadInput, Busy, Conflict
from engine.image_result import ImageResult
from records import answers as module
from records.answers import Answer, Answers
from tests.support.serving import Server, serving, settings_in

KEY = {"Idempotency-Key": "a-key"}
ANSWER = Answer(200, [("content-type", "text/plain")], b"done")


@pytest.fixture
def drawn(server: Server, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Executions that reach the scheduler, by prompt."""
    scheduler, counts = server.service.engine.scheduler, Counter[str]()
    usual = scheduler.submit_draw

    def counted(requests: Any, *arguments: Any) -> Future[list[ImageResult]]:  # noqa: ANN401
        counts[requests[0].prompt] += 1
        return usual(requests, *arguments)

    monkeypatch.setattr(scheduler, "submit_draw", counted)
    return counts


def test_a_thousand_duplicates_are_one_execution(server: Server, drawn: Counter[str]) -> None:
    async def all_at_once() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            calls = (http.post("/generate", json={"prompt": "a red apple"}, headers=KEY) for _ in range(1000))
            return await asyncio.gather(*calls)

    responses = asyncio.run(all_at_once())
    assert drawn == {"a red apple": 1}
    by_status = Counter(response.status_code for response in responses)
    assert set(by_status) <= {200, 409} and by_status[200] >= 1
    assert all(response.headers["Retry-After"] == "1" for response in responses if response.status_code == 409)
    last = server.post("/generate", {"prompt": "a red apple"}, **KEY)
    assert last.headers["Idempotent-Replayed"] == "true" and drawn == {"a red apple": 1}
    bodies = {response.content for response in [*responses, last] if response.status_code == 200}
    assert len(bodies) == 1  # though no seed was given
    assert sum("Idempotent-Replayed" not in response.headers for response in responses if response.is_success) == 1


def test_an_answer_survives_a_restart(model: Path, tmp_path: Path) -> None:
    body, headers = {"prompt": "a red apple"}, {**KEY, "Accept": "image/png"}
    with serving(settings_in(tmp_path, model)) as server:
        first = server.post("/generate", body, **headers)
    with serving(settings_in(tmp_path, model)) as server:
        again = server.post("/generate", body, **headers)
        assert again.content == first.content and again.headers["Idempotent-Replayed"] == "true"
        for name in ("Content-Type", "X-Codebook-Version", "X-Seed", "X-Image-Id"):
            assert again.headers[name] == first.headers[name]
        assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]


def test_a_key_stands_for_one_request(server: Server, drawn: Counter[str]) -> None:
    assert server.post("/generate", {"prompt": "a"}, **KEY).status_code == 200
    other = server.post("/generate", {"prompt": "b"}, **KEY)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
    as_png = server.post("/generate", {"prompt": "a"}, Accept="image/png", **KEY)
    assert as_png.status_code == 422
    elsewhere = server.post("/codebooks/compare", {"prompt": "a", "versions": ["v0", "v0"]}, **KEY)
    assert elsewhere.status_code == 200  # a key is of one path
    assert drawn == {"a": 2}  # and of one caller: see test_middlewares


def test_what_is_wrong_is_wrong_again_and_what_may_pass_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [server.post("/generate", {"prompt": ""}, **KEY) for _ in range(2)]
    assert [answer.status_code for answer in bad] == [422, 422] and bad[0].content == bad[1].content
    scheduler = server.service.engine.scheduler

    def busy(*arguments: Any) -> Future[list[ImageResult]]:  # noqa: ANN401
        raise Busy("full")

    other = {"Idempotency-Key": "another"}
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "submit_draw", busy)
        assert server.post("/generate", {"prompt": "a"}, **other).status_code == 429
    assert server.post("/generate", {"prompt": "a"}, **other).status_code == 200


def test_a_stream_frees_its_key_before_it_ends(
    server: Server, drawn: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = Answers.drop

    def slow(answers: Answers, key: str) -> None:
        time.sleep(0.2)
        drop(answers, key)

    monkeypatch.setattr(Answers, "drop", slow)
    for _ in range(2):
        answer = server.post("/generate", {"prompt": "a"}, Accept="text/event-stream", **KEY)
        assert "event: image" in answer.text
    assert drawn == {"a": 2}


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", b"\xff"])
def test_a_bad_key_is_refused(server: Server, key: str) -> None:
    answer = server.http.post("/generate", json={"prompt": "a"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def test_a_long_body_is_refused_as_without_a_key(server: Server) -> None:
    body = b'{"prompt": "' + b"x" * (3 * 2**20) + b'"}'
    answer = server.http.post("/generate", content=body, headers={"Content-Type": "application/json"} | KEY)
    assert answer.status_code == 413 and answer.headers["Content-Type"] == "application/problem+json"


def test_an_improve_job_is_made_once(server: Server) -> None:
    jobs = [server.post("/improve", {"policy": "open"}, **KEY) for _ in range(3)]
    assert {job.status_code for job in jobs} == {202} and len({job.content for job in jobs}) == 1
    assert [job["id"] for job in server.http.get("/jobs").json()] == [jobs[0].json()["id"]]
    assert {job.headers["Location"] for job in jobs} == {f"/jobs/{jobs[0].json()['id']}"}


def test_a_request_that_a_dead_process_began_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    dead, living = Answers(path), Answers(path)
    assert dead.begin("k", "r") is None
    with pytest.raises(Conflict):
        dead.begin("k", "r")
    assert living.begin("k", "r") is None
    dead.keep("k", Answer(500, [], b"late"))  # it was not dead: its answer is not the key's any more
    living.keep("k", ANSWER)
    assert dead.begin("k", "r") == living.begin("k", "r") == ANSWER
    with pytest.raises(BadInput):
        living.begin("k", "other")
    living.drop("other")
    assert living.begin("k", "r") == ANSWER


def test_old_and_many_answers_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Answers(tmp_path / "answers.db")
    monkeypatch.setattr(module, "MOST_BYTES", 3 * len(ANSWER.body))
    for key in "abcde":
        assert kept.begin(key, "r") is None
        kept.keep(key, ANSWER)
    assert kept.begin("unfinished", "r") is None
    with sqlite3.connect(tmp_path / "answers.db") as db:
        assert [row[0] for row in db.execute("SELECT key FROM answers ORDER BY number")] == [
            "c",
            "d",
            "e",
            "unfinished",
        ]
    monkeypatch.setattr(module, "KEEP_S", 0.0)
    assert kept.begin("e", "r") is None
