"""Middlewares together: bugs, HEAD, long bodies and odd methods end as every other answer does."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from tests.support.serving import Server, raw, serving, settings_in, wait_for

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(("path", "is_openais"), [("/generate", False), ("/v1/images/generations", True)])
def test_a_bug_is_answered_like_everything_else(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, is_openais: bool
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.service.engine.scheduler, "submit_draw", broken)
    answer = server.post(path, {"prompt": "a"}, **{"X-Request-Id": "mine", "Idempotency-Key": "k"})
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (500, "mine")
    assert ("error" in answer.json()) == is_openais and "ZeroDivision" not in answer.text
    counted = f'safecb_responses_total{{method="POST",route="{path}",status="500"}} 1.0'
    assert counted in server.http.get("/metrics").text
    monkeypatch.undo()
    assert server.post(path, {"prompt": "a"}, **{"Idempotency-Key": "k"}).status_code == 200


def test_head_of_a_stream_ends_at_once_and_counts_for_its_route(server: Server) -> None:
    job = server.post("/improve", {"policy": "open"}).json()["id"]
    answer = server.http.head(f"/jobs/{job}/events")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/event-stream")
    assert server.http.get("/health/live").status_code == 200  # on the same connection
    counted = 'safecb_responses_total{method="HEAD",route="/jobs/{id}/events",status="200"} 1.0'
    assert counted in server.http.get("/metrics").text


def test_a_method_of_a_callers_own_makes_no_series(server: Server) -> None:
    for method in (b"A1", b"A2"):
        with raw(server.url) as connection:
            connection.sendall(method + b" /x%0Aforged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 404")
    text = server.http.get("/metrics").text
    assert 'method="other",route="unmatched",status="404"} 2.0' in text and "A1" not in text


def test_a_forged_path_is_one_line_of_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="app.metrics.responses"):
        server.http.get("/x%0Aforged")
        wait_for("the answer is logged", lambda: "forged" in caplog.text)  # after it is sent
    assert [record.getMessage() for record in caplog.records if "forged" in record.getMessage()] == [
        "GET /x%0Aforged 404"
    ]


def test_a_long_list_of_prompts_is_read_for_those_who_may_send_it(model: Path, tmp_path: Path) -> None:
    body = json.dumps({"prompts": ["\u00e4" * 3000] * 1000, "policy": "none"}, ensure_ascii=False).encode()
    with serving(settings_in(tmp_path, model, SAFECB_API_KEYS="a-key")) as server:

        def sent(path: str, **headers: str) -> int:
            return server.http.post(path, content=body, headers=JSON | headers).status_code

        assert len(body) > 5 * 2**20
        assert sent("/improve", **{"X-API-Key": "a-key"}) == 422
        assert sent("/improve") == sent("/improve", **{"X-API-Key": "wrong"}) == 413
        assert sent("/generate", **{"X-API-Key": "a-key"}) == 413


def test_a_revoked_key_gets_no_earlier_answer(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_API_KEYS="old,new")) as server:
        headers = {"Idempotency-Key": "k", "X-API-Key": "old"}
        assert server.post("/generate", {"prompt": "a"}, **headers).status_code == 200
    with serving(settings_in(tmp_path, model, SAFECB_API_KEYS="new")) as server:
        assert server.post("/generate", {"prompt": "a"}, **headers).status_code == 401


def test_callers_without_keys_do_not_share_their_idempotency_keys(server: Server) -> None:
    def sent(address: str, prompt: str) -> httpx2.Response:
        with httpx2.Client(transport=httpx2.HTTPTransport(local_address=address), timeout=60) as http:
            return http.post(f"{server.url}/generate", json={"prompt": prompt}, headers={"Idempotency-Key": "1"})

    first, other, again = sent("127.0.0.1", "a"), sent("127.0.0.2", "b"), sent("127.0.0.1", "a")
    assert [answer.status_code for answer in (first, other, again)] == [200, 200, 200]
    assert again.content == first.content != other.content


def test_a_model_folders_path_is_in_no_answer(server: Server, model: Path) -> None:
    drawn = server.draw()
    answers = [drawn, server.http.get("/health/ready"), server.http.get("/codebooks/v0/report")]
    answers += [server.http.get("/v1/models"), server.http.get(f"/images/{drawn.json()['images'][0]['id']}")]
    for answer in answers:
        assert answer.status_code == 200 and str(model).encode() not in answer.content
    assert drawn.json()["model"] == model.name
    assert server.service.engine.facts.model_id == str(model.resolve())  # where judges beside it are found
