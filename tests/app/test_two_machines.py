"""Two servers with homes of their own on one bucket and one Redis: one service, whichever of them answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.background.store_watcher import POLL_EVERY_S
from tests.support.redis_home import own_redis
from tests.support.servers.s3 import S3, Line
from tests.support.serving import Server, serving, settings_in, wait_for

POLICY = b'{"prompt": "a red kite", "category": "red kites"}\n'
KEY = {"Idempotency-Key": "a-key"}
Pair = tuple[Server, Server]


@pytest.fixture
def pair(s3: S3, line: Line, model: Path, tmp_path: Path) -> Iterator[Pair]:
    url = s3.bucket()
    with own_redis() as redis:
        same = {"SAFECB_STORE": url, "SAFECB_REDIS_URL": redis}
        with (
            serving(settings_in(tmp_path / "one", model, **same)) as one,
            serving(settings_in(tmp_path / "other", model, **same)) as other,
        ):
            yield one, other


def epoch(server: Server) -> int:
    return server.service.live.active.epoch


def test_moves_of_one_reach_the_other_and_images_say_the_same(pair: Pair) -> None:
    one, other = pair
    version = one.publish(1)
    assert one.http.post(f"/codebooks/{version}/activate").status_code == 200
    wait_for("the other follows", lambda: other.service.live.active.version == version)
    assert one.png() == other.png()
    drawn, again = one.draw().json(), other.draw().json()
    assert drawn["codebook_hash"] == again["codebook_hash"] and drawn["images"][0]["id"] == again["images"][0]["id"]
    assert other.http.post(f"/codebooks/{version}/revoke").status_code == 200
    wait_for("the first follows", lambda: one.service.live.active.version == "v0")
    assert one.draw(codebook=version).status_code == 422
    assert one.http.get("/codebooks/audit").json() == other.http.get("/codebooks/audit").json()
    ready = other.http.get("/health/ready").json()
    assert ready["storage"] == {"SAFECB_HOME": "ok", "SAFECB_STORE": "ok"}


def test_simultaneous_moves_make_one_history_and_no_image_mixes_versions(pair: Pair) -> None:
    one, other = pair
    versions = ["v0", *(one.publish(seed) for seed in (1, 2))]
    own = {v: one.png(codebook=v) for v in versions}
    answers: list[tuple[str, bytes]] = []

    def draw(server: Server) -> None:
        for _ in range(15):
            reply = server.http.post(
                "/generate", json={"prompt": "a red apple", "seed": 7}, headers={"Accept": "image/png"}
            )
            assert reply.status_code == 200, reply.text
            answers.append((reply.headers["X-Codebook-Version"], reply.content))

    def move(server: Server, start: int) -> int:
        moves = [server.http.post(f"/codebooks/{versions[(start + n) % 3]}/activate") for n in range(10)]
        assert all(reply.status_code == 200 for reply in moves)
        return sum(reply.json()["new"] != reply.json()["old"] for reply in moves)

    with ThreadPoolExecutor(4) as pool:
        drawing = [pool.submit(draw, server) for server in pair]
        moving = [pool.submit(move, server, start) for start, server in enumerate(pair)]
        moved = sum(job.result() for job in moving)
        for job in drawing:
            job.result()
    assert len(answers) == 30 and all(png == own[version] for version, png in answers)
    audit = one.http.get("/codebooks/audit").json()
    assert [record["epoch"] for record in audit] == [*range(moved, -1, -1)]
    wait_for("both are level", lambda: epoch(one) == epoch(other) == moved)


def test_jobs_flags_policies_and_images_are_one_services(pair: Pair) -> None:
    one, other = pair
    job = one.post("/improve", {"policy": "open"}).json()
    assert other.http.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    refused = other.post("/improve", {"policy": "open"})
    assert refused.status_code == 409 and job["id"] in refused.text
    assert other.http.delete(f"/jobs/{job['id']}").status_code == 202
    assert one.http.get(f"/jobs/{job['id']}").json()["status"] == "cancelled"
    image = one.draw().json()["images"][0]["id"]
    assert other.http.get(f"/images/{image}").status_code == 200
    flag = other.post("/flags", {"image_id": image, "note": "look"})
    assert flag.status_code == 201, flag.text
    assert [listed["id"] for listed in one.http.get("/flags").json()] == [flag.json()["id"]]
    put = one.http.put("/policies/mine", content=POLICY, headers={"Content-Type": "application/jsonl"})
    assert put.status_code == 201, put.text
    assert other.http.get("/policies/mine").json()["version"] == put.json()["version"]
    assert other.http.delete("/policies/mine").status_code == 204
    assert one.http.get("/policies/mine").status_code == 404


def test_a_request_sent_again_to_the_other_gets_the_first_answer(pair: Pair) -> None:
    one, other = pair
    body = {"prompt": "a red apple"}  # without a seed: drawn again it would be another image
    first, again = (server.post("/generate", body, **KEY) for server in pair)
    assert first.status_code == 200 and first.content == again.content
    assert "Idempotent-Replayed" not in first.headers and again.headers["Idempotent-Replayed"] == "true"
    refused = other.post("/generate", {"prompt": "a dog"}, **KEY)
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")
    jobs = [server.post("/improve", {"policy": "open"}, **KEY) for server in (other, one)]
    assert [job.status_code for job in jobs] == [202, 202] and jobs[0].json()["id"] == jobs[1].json()["id"]


def test_a_start_waits_for_a_bucket_that_does_not_answer(s3: S3, line: Line, model: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, model, SAFECB_STORE=s3.bucket())
    line.cut = True
    with serving(settings, ready=False) as server:  # the end of one that still waits is not held up
        wait_for("the server says why", lambda: "SAFECB_STORE" in server.http.get("/health/ready").text)
    with serving(settings, ready=False) as server:
        wait_for("the server says why", lambda: "SAFECB_STORE" in server.http.get("/health/ready").text)
        refused = server.draw()
        assert refused.status_code == 503 and "SAFECB_STORE" in refused.json()["detail"]
        line.cut = False
        wait_for("the server is ready", lambda: server.http.get("/health/ready").status_code == 200)
        assert server.draw().status_code == 200


def test_a_start_without_its_bucket_ends(s3: S3, line: Line, model: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, model, SAFECB_STORE=f"{s3.bucket()[:-10]}-not-there/codebooks")
    with serving(settings, ready=False) as server:
        wait_for("the server gives up", lambda: server.service.failure)
        assert "there is no such bucket" in str(server.service.failure)


def test_a_cut_of_the_bucket_fails_no_image_and_is_healed(pair: Pair, line: Line) -> None:
    one, other = pair
    version = one.publish(1)
    one.draw(codebook=version)
    line.cut = True
    wait_for("the servers say so", lambda: one.http.get("/health/ready").json()["stale_s"] > 1.0)
    assert {one.draw(seed=seed).status_code for seed in range(5)} == {200}
    assert one.draw(codebook=version).status_code == 200
    refused = one.http.post(f"/codebooks/{version}/activate")
    assert refused.status_code == 503 and "SAFECB_STORE" in refused.text
    line.cut = False
    wait_for("the bucket is asked again", lambda: one.http.get("/health/ready").json()["stale_s"] < 1.0)
    assert one.http.post(f"/codebooks/{version}/activate").status_code == 200
    began = time.monotonic()
    wait_for("the other is level", lambda: other.service.live.active.version == version)
    assert time.monotonic() - began < 40 * POLL_EVERY_S
    assert other.http.get("/health/ready").json()["stale_s"] < 5.0
