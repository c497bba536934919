"""Attacks on POST /generate and on the swap: which version drew what, and that nothing ever mixes."""

from __future__ import annotations

import base64
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from app import drawing
from core.errors import Refused
from core.settings import Settings
from engine.image_result import ImageResult
from engine.registry import open_model
from engine.runner.batch import RunningBatch
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served
from engine.scheduler.fair_queue import Place
from tests.support.serving import Server, pixels, serving, settings_in, texts, wait_for


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


@pytest.fixture
def stepwise(model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server whose images get a token a step: with lookahead, previews come in the order of right guesses."""
    with serving(settings_in(tmp_path, model, SAFECB_LOOKAHEAD="1")) as server:
        yield server


def test_json_names_the_version_everywhere(server: Server) -> None:
    answer = server.draw(n=3)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["X-Codebook-Version"] == body["codebook"] == "v0"
    assert [image["seed"] for image in body["images"]] == [7, 8, 9]
    for image in body["images"]:
        facts = texts(base64.b64decode(image["b64_png"]))
        drawn_by = {"codebook": "v0", "codebook_hash": body["codebook_hash"]}
        assert facts == {**drawn_by, "seed": str(image["seed"]), "model": body["model"]}
        assert image["codebook"] == "v0"
        assert 0 <= image["safety"]["score"] <= 1
        assert isinstance(image["safety"]["unsafe"], bool) and image["safety"]["category"]


def test_png_answers_the_picture_itself(server: Server) -> None:
    answer = server.http.post("/generate", json={"prompt": "a red apple", "seed": 7}, headers={"Accept": "image/png"})
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Codebook-Version"] == "v0" and answer.headers["X-Seed"] == "7"
    assert answer.content == base64.b64decode(server.draw().json()["images"][0]["b64_png"])
    assert b"apple" not in answer.content


def test_image_i_is_the_image_of_seed_plus_i(server: Server) -> None:
    images = server.draw(n=4, seed=100).json()["images"]
    alone = [server.draw(seed=100 + i).json()["images"][0] for i in range(4)]
    assert images == alone
    assert len({image["b64_png"] for image in images}) > 1


def test_the_largest_seed_does_not_overflow(server: Server) -> None:
    assert [i["seed"] for i in server.draw(n=2, seed=2**63 - 1).json()["images"]] == [2**63 - 1, 0]


def test_a_seed_is_chosen_and_reported(server: Server) -> None:
    first = server.post("/generate", {"prompt": "a cat"}).json()
    second = server.post("/generate", {"prompt": "a cat"}).json()
    assert first["seed"] != second["seed"]
    assert server.post("/generate", {"prompt": "a cat", "seed": first["seed"]}).json()["images"] == first["images"]


def test_settings_reach_the_sampler(server: Server) -> None:
    greedy = [server.png(temperature=0, seed=seed) for seed in (1, 2)]
    assert pixels(greedy[0]) == pixels(greedy[1])
    assert pixels(server.png(temperature=10)) != pixels(server.png(temperature=0))
    assert pixels(server.png(top_k=1)) == pixels(server.png(top_p=1e-9)) == pixels(server.png(temperature=0))
    answer = server.post("/generate", {"prompt": "a cat", "seed": 1, "top_p": 0.5}).json()
    again = server.post("/generate", {"prompt": "a cat", "seed": 1, "top_p": answer["top_p"]}).json()
    assert again["images"] == answer["images"] and answer["top_p"] == 0.5
    assert (
        answer["images"][0]["id"] != server.post("/generate", {"prompt": "a cat", "seed": 1}).json()["images"][0]["id"]
    )
    assert pixels(server.png(guidance_scale=1)) != pixels(server.png(guidance_scale=20))


def test_each_picture_is_the_decode_of_its_tokens_under_its_version(server: Server) -> None:
    version = server.publish(11)
    drawn = server.png(codebook=version)
    assert texts(drawn)["codebook"] == version
    assert pixels(drawn) != pixels(server.png(codebook="v0"))
    assert server.service.live.active.version == "v0"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("image/png, application/json;q=0.5", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("image/*", "image/png"),
        ("image/png;q=x, */*", "application/json"),
    ],
)
def test_accept_decides_the_kind(server: Server, accept: str, kind: str) -> None:
    answer = server.post("/generate", {"prompt": "a", "seed": 1}, Accept=accept)
    assert answer.headers["Content-Type"] == kind


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/webp"])
def test_what_is_not_offered_is_406(server: Server, accept: str) -> None:
    assert server.post("/generate", {"prompt": "a"}, Accept=accept).status_code == 406


def test_several_images_are_not_one_png(server: Server) -> None:
    answer = server.post("/generate", {"prompt": "a", "n": 2}, Accept="image/png")
    assert (answer.status_code, answer.json()["field"]) == (422, "n")


class Gate:
    """Holds the thread that draws, before it begins an image, so that a test decides when it goes on."""

    def __init__(self) -> None:
        self.entered, self.open, self.shut = threading.Semaphore(0), threading.Event(), False

    def load(self, settings: Settings) -> Served:
        model = open_model(settings)
        gate, inner = self, model.running_batch

        def running_batch(kv_rows: int, lookahead: int = 1) -> RunningBatch:
            batch = inner(kv_rows, lookahead)
            admit = batch.admit

            def held(sequences: Sequence[ImageSequence]) -> list[ImageSequence]:
                if gate.shut:
                    gate.entered.release()
                    gate.open.wait()
                return admit(sequences)

            batch.admit = held  # type: ignore[method-assign]
            return batch

        model.running_batch = running_batch  # type: ignore[method-assign]
        return model


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def gated(gate: Gate, model: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(settings_in(tmp_path, model), gate.load) as server:
        gate.shut = True
        yield server
        gate.open.set()


def test_the_version_is_fixed_at_admission(gated: Server, gate: Gate) -> None:
    version = gated.publish(1)
    with ThreadPoolExecutor() as callers:
        early = callers.submit(gated.png)
        gate.entered.acquire()
        assert gated.http.post(f"/codebooks/{version}/activate").status_code == 200
        late = callers.submit(gated.png)
        gate.open.set()
        assert texts(early.result())["codebook"] == "v0"
        assert texts(late.result())["codebook"] == version
    assert pixels(early.result()) == pixels(gated.png(codebook="v0"))


def test_a_drawing_server_still_answers(gated: Server, gate: Gate) -> None:
    with ThreadPoolExecutor() as callers:
        drawing = callers.submit(gated.png)
        gate.entered.acquire()
        assert gated.http.get("/health/live").status_code == 200
        assert gated.http.get("/codebooks").status_code == 200
        assert not drawing.done()
        gate.open.set()
        drawing.result()


def test_a_full_queue_is_429_with_retry_after(gated: Server, gate: Gate) -> None:
    with ThreadPoolExecutor(max_workers=10) as callers:
        first = callers.submit(gated.draw)
        gate.entered.acquire()
        rest = [callers.submit(gated.draw, n=8) for _ in range(8)]
        wait_for("64 images wait", lambda: gated.service.engine.scheduler.waiting() == 64)
        refused = gated.draw(n=1)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["type"] == "urn:safecb:problem:busy"
        gate.open.set()
        assert {call.result().status_code for call in [first, *rest]} == {200}


def streamed(answer: httpx2.Response) -> Iterator[tuple[str, Any]]:
    """The events of a stream as they come."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_stream_tells_of_an_image_on_its_way(stepwise: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, step = (
        threading.Semaphore(4),
        RunningBatch.step,
    )  # the next quarter waits until this one is reported, else it is old

    def gated(batch: RunningBatch) -> object:
        assert allowed.acquire(timeout=60)
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", gated)
    body = {"prompt": "a red apple", "seed": 7, "n": 2}
    with stepwise.http.stream("POST", "/generate", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = []
        for event in streamed(answer):
            events.append(event)
            if event[0] == "preview" and event[1]["index"] == 1:
                allowed.release(4)
    allowed.release(10_000)
    parts = [data for name, data in events if name == "progress"]
    assert [(p["index"], p["done"], p["total"]) for p in parts] == [(i, d, 16) for d in (4, 8, 12) for i in (0, 1)]
    previews = [base64.b64decode(data["b64_png"]) for name, data in events if name == "preview"]
    assert len(previews) == len(parts) and len(pixels(previews[0])) == 16 * 16 * 3
    images = [data for name, data in events if name == "image"]
    assert images == stepwise.draw(n=2).json()["images"]
    assert [name for name, _ in events][-2:] == ["image", "image"]


def test_a_stream_answers_what_is_wrong_with_a_status(server: Server) -> None:
    for body, field in (({"prompt": "<begin_of_image>"}, "prompt"), ({"prompt": "a", "top_k": 65}, "top_k")):
        answer = server.http.post("/generate", json=body, headers={"Accept": "text/event-stream"})
        assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_what_fails_faster_than_its_place_is_read_is_still_an_event(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def finish(*given: object) -> list[ImageResult]:
        on_news = cast("Callable[[Place], None]", given[-1])
        on_news(Place(0, 1.0))
        raise Refused("v1")

    monkeypatch.setattr(drawing, "finish", finish)
    with server.http.stream("POST", "/generate", json={"prompt": "a"}, headers={"Accept": "text/event-stream"}) as one:
        assert [name for name, _ in streamed(one)] == ["queued", "error"]


@pytest.mark.fault("F11")
def test_a_stream_says_immediately_where_it_stands(gated: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SILENT_S", 0.1)
    scheduler, headers = gated.service.engine.scheduler, {"Accept": "text/event-stream"}
    with ThreadPoolExecutor() as callers:
        first = callers.submit(gated.draw)
        gate.entered.acquire()
        rest = [callers.submit(gated.draw, n=8) for _ in range(4)]
        wait_for("they are in the queue", lambda: scheduler.waiting() == 32)
        with gated.http.stream("POST", "/generate", json={"prompt": "a cat", "n": 2}, headers=headers) as answer:
            assert answer.status_code == 200
            assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
            lines = answer.iter_lines()
            assert next(lines) == "event: queued"
            place = json.loads(next(lines).removeprefix("data: "))
            assert place["ahead"] == 32 and place["eta_s"] > 0
            assert [next(lines) for _ in range(5)] == ["", ": ping", "", ": ping", ""]
            assert (scheduler.waiting(), len(scheduler._calls)) == (34, 6)
        wait_for("its images are given up", lambda: len(scheduler._calls) == 5)
        gate.open.set()
        assert {call.result().status_code for call in [first, *rest]} == {200}


@pytest.mark.fault("F11")
def test_what_is_wrong_is_answered_before_the_queue(gated: Server, gate: Gate) -> None:
    bodies = [({"prompt": "<begin_of_image>"}, 422), ({"prompt": "a", "top_k": 65}, 422)]
    bodies += [({"prompt": "a", "codebook": "v9"}, 422), ({"prompt": "a"}, 429)]
    with ThreadPoolExecutor(max_workers=10) as callers:
        first = callers.submit(gated.draw)
        gate.entered.acquire()
        rest = [callers.submit(gated.draw, n=8) for _ in range(8)]
        wait_for("64 images wait", lambda: gated.service.engine.scheduler.waiting() == 64)
        for accept in ("application/json", "image/png", "text/event-stream"):
            for body, status in bodies:
                answer = gated.http.post("/generate", json=body, headers={"Accept": accept})
                assert answer.status_code == status, (accept, body)
                assert answer.headers["content-type"] == "application/problem+json"
        gate.open.set()
        assert {call.result().status_code for call in [first, *rest]} == {200}


def test_a_bad_prompt_is_answered_while_others_are_drawn_and_wait(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are tokenised before the queue: no step is run between the request and its 422."""
    allowed, begun, step = threading.Semaphore(1), threading.Semaphore(0), RunningBatch.step
    scheduler = server.service.engine.scheduler

    def slow(batch: RunningBatch) -> object:
        begun.release()
        assert allowed.acquire(timeout=60)
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", slow)
    with ThreadPoolExecutor(max_workers=8) as callers:
        calls = [callers.submit(server.draw, n=8) for _ in range(5)]
        assert begun.acquire(timeout=60) and begun.acquire(timeout=60)  # the second step waits
        wait_for("images wait", lambda: scheduler.waiting() > 0)
        for prompt in ("<begin_of_image>", "far too long " * 50):
            answer = server.draw(prompt=prompt)
            assert (answer.status_code, answer.json()["field"]) == (422, "prompt")
        assert not begun.acquire(blocking=False) and scheduler.waiting() > 0
        allowed.release(10_000)
        assert {call.result().status_code for call in calls} == {200}


def test_a_stream_that_nobody_reads_is_drawn_no_more(stepwise: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, step, scheduler = threading.Semaphore(5), RunningBatch.step, stepwise.service.engine.scheduler

    def slow(batch: RunningBatch) -> object:
        allowed.acquire()
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", slow)
    with httpx2.Client(base_url=stepwise.url) as impatient:
        body, headers = {"prompt": "a long one"}, {"Accept": "text/event-stream"}
        with impatient.stream("POST", "/generate", json=body, headers=headers) as answer:
            events = streamed(answer)
            assert next(events) == ("queued", {"ahead": 0, "eta_s": pytest.approx(0, abs=60)})
            assert next(events)[1]["done"] == 4
    wait_for("its call is given up", lambda: not scheduler._calls)
    allowed.release()  # of its 16 steps the sixth or seventh
    wait_for("its image is dropped", lambda: not scheduler._batch.sequences)
    allowed.release(10_000)


def test_a_caller_that_hangs_up_is_drawn_no_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, allowed, step = [], threading.Semaphore(0), RunningBatch.step

    def slow(batch: RunningBatch) -> object:
        steps.append([sequence.request.prompt for sequence in batch.sequences])
        allowed.acquire()
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", slow)
    with httpx2.Client(base_url=server.url) as impatient, pytest.raises(httpx2.ReadTimeout):
        impatient.post("/generate", json={"prompt": "a long one"}, timeout=0.3)
    scheduler = server.service.engine.scheduler
    wait_for("its call is given up", lambda: not scheduler._calls)
    allowed.release()
    wait_for("its image is dropped", lambda: not scheduler._batch.sequences)
    assert steps == [["a long one"]]
    allowed.release(10_000)
    assert server.draw().status_code == 200


def test_a_thousand_swaps_while_four_clients_draw(server: Server) -> None:
    versions = ["v0", server.publish(21), server.publish(22), server.publish(23, output=True)]
    right = {v: [pixels(server.png(codebook=v, seed=seed)) for seed in range(3)] for v in versions}
    assert len({tuple(images) for images in right.values()}) == 4
    stop = threading.Event()

    def client() -> list[tuple[str, int, bytes]]:
        images = []
        for seed in itertools.cycle(range(3)):
            png = server.png(seed=seed)
            images.append((texts(png)["codebook"], seed, pixels(png)))
            if stop.is_set():
                return images
        raise AssertionError

    with ThreadPoolExecutor() as callers:
        clients = [callers.submit(client) for _ in range(4)]
        try:
            for swap in range(1000):
                server.service.store.activate(versions[(swap + 1) % 4], by="test")
                server.service.live.refresh()
        finally:
            stop.set()
        images = [image for each in clients for image in each.result()]
    assert all(image == right[version][seed] for version, seed, image in images)
    assert len({version for version, _, _ in images}) > 1
    server.http.post("/codebooks/v0/activate")


def test_rollback_gives_the_same_bytes(server: Server) -> None:
    before = server.png(seed=5)
    version = server.publish(31)
    assert server.http.post(f"/codebooks/{version}/activate").status_code == 200
    assert pixels(server.png(seed=5)) != pixels(before)
    assert server.http.post("/codebooks/rollback").json()["new"]["version"] == "v0"
    assert server.png(seed=5) == before


def test_the_batch_changes_no_picture(server: Server) -> None:
    alone = [server.png(seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(max_workers=8) as callers:
        together = list(callers.map(lambda seed: server.png(seed=seed), range(8)))
    assert together == alone
