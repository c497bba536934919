"""Attacks on /codebooks: activations, refused versions, comparisons, reports and their pages."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.console.report_page import page
from codebook.store import CodebookStore
from tests.support.serving import Server, pixels, publish, serving, settings_in, tiny_png, wait_for
from tests.support.tiny import build_tiny


def test_versions_are_listed_with_their_facts(server: Server) -> None:
    server.publish(1)
    server.publish(2, output=True)
    body = server.http.get("/codebooks").json()
    assert body["active"]["version"] == "v0"
    assert [(v["version"], v["state"], v["tables"], v["parent"]) for v in body["versions"]] == [
        ("v0", "active", [], None),
        ("v1", "published", ["pixel"], "v0"),
        ("v2", "published", ["output"], "v0"),
    ]
    assert server.http.get("/codebooks/v1").json() == body["versions"][1]


def test_moves_tell_old_and_new_and_are_audited(server: Server) -> None:
    server.publish(1)
    moved = server.post("/codebooks/v1/activate", {"expected_epoch": 0}).json()
    assert (moved["old"]["version"], moved["new"]["version"], moved["new"]["epoch"]) == ("v0", "v1", 1)
    content = server.service.store.manifest("v1").content_hash
    assert server.http.get("/codebooks/active").json() == {**moved["new"], "codebook_hash": content}
    back = server.post("/codebooks/rollback", {"to": "v0", "expected_epoch": 1}).json()
    assert (back["new"]["version"], back["new"]["epoch"]) == ("v0", 2)
    assert [m["version"] for m in server.service.store.audit()] == ["v0", "v1", "v0"]
    assert {m["moved_by"] for m in server.service.store.audit()[1:]} == {"operator"}


def test_a_move_from_a_stale_epoch_is_refused(server: Server) -> None:
    server.publish(1)
    server.post("/codebooks/v1/activate", {})
    for path, body in (
        ("/codebooks/v0/activate", {"expected_epoch": 0}),
        ("/codebooks/rollback", {"expected_epoch": 0}),
    ):
        answer = server.post(path, body)
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:safecb:problem:conflict")
    assert server.http.get("/codebooks/active").json()["version"] == "v1"


def test_of_two_racing_moves_one_wins(server: Server) -> None:
    versions = [server.publish(1), server.publish(2)]
    with ThreadPoolExecutor() as callers:
        answers = list(
            callers.map(lambda v: server.post(f"/codebooks/{v}/activate", {"expected_epoch": 0}).status_code, versions)
        )
    assert sorted(answers) == [200, 409]


def test_a_damaged_version_is_refused_by_name_and_the_old_one_stays(server: Server) -> None:
    version = server.publish(1)
    server.publish(2)
    before = server.png()
    path = server.service.settings.store / "versions" / version / "codebook.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    for answer in (server.http.post(f"/codebooks/{version}/activate"), server.draw(codebook=version)):
        body = answer.json()
        assert (answer.status_code, body["check"], body["version"]) == (409, "sha256", version)
    assert server.http.get("/codebooks/active").json()["version"] == "v0"
    assert server.png() == before
    assert server.http.get("/health/ready").json()["status"] == "ready"


def test_a_move_by_another_process_is_followed_without_redis(server: Server) -> None:
    elsewhere = CodebookStore(server.service.settings.store)
    publish(elsewhere, 1)
    elsewhere.activate("v1", by="another process")
    wait_for("the server follows", lambda: server.http.get("/codebooks/active").json()["version"] == "v1")
    assert server.draw().headers["X-Codebook-Version"] == "v1"


def test_a_store_that_lost_its_active_alias_changes_nothing_and_is_reported(server: Server) -> None:
    (server.service.settings.store / "ACTIVE").write_bytes(b"{")
    wait_for("the server reports it", lambda: server.http.get("/health/ready").json()["refused"])
    assert server.draw().headers["X-Codebook-Version"] == "v0"


def test_the_active_version_outlives_the_server(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model)) as server:
        server.publish(1)
        server.post("/codebooks/v1/activate", {})
        before = server.png()
    with serving(settings_in(tmp_path, model)) as server:
        assert server.http.get("/codebooks/active").json()["version"] == "v1"
        assert server.png() == before


def test_another_models_store_is_refused(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model)):
        pass
    other = build_tiny(tmp_path / "other", seed=1)
    with serving(settings_in(tmp_path, other), ready=False) as server:
        wait_for("the model is refused", lambda: server.service.failure)
        answer = server.http.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "unready")
        assert "model" in answer.json()["reason"]
        assert server.draw().status_code == 409
        assert server.http.get("/health/live").status_code == 200


def test_a_pixel_edit_is_compared_on_the_same_tokens(server: Server) -> None:
    server.publish(1)
    body = server.post("/codebooks/compare", {"prompt": "a red apple", "seed": 7, "versions": ["v0", "v1"]}).json()
    assert body["same_tokens"] is True
    assert [image["codebook"] for image in body["images"]] == ["v0", "v1"]
    left, right = (base64.b64decode(image["b64_png"]) for image in body["images"])
    assert (left, right) == (server.png(codebook="v0"), server.png(codebook="v1"))
    a, b = pixels(left), pixels(right)
    differing = sum(a[i : i + 3] != b[i : i + 3] for i in range(0, len(a), 3))
    assert body["difference"]["pixels"] == differing > 0
    assert body["difference"]["share"] == pytest.approx(differing / 256)
    assert body["difference"]["largest"] == max(abs(x - y) for x, y in zip(a, b, strict=True))
    mask = pixels(base64.b64decode(body["difference"]["b64_png"]))
    assert mask.count(255) == 3 * differing


def test_an_output_edit_is_compared_on_the_same_seed(server: Server) -> None:
    server.publish(1, output=True)
    body = server.post("/codebooks/compare", {"prompt": "a red apple", "seed": 7, "versions": ["v0", "v1"]}).json()
    assert body["same_tokens"] is False
    assert {image["seed"] for image in body["images"]} == {7}


def test_a_version_equals_itself(server: Server) -> None:
    body = server.post("/codebooks/compare", {"prompt": "a cat", "versions": ["active", "v0"]}).json()
    assert (body["same_tokens"], body["difference"]["pixels"], body["difference"]["largest"]) == (True, 0, 0)


def test_the_report_as_json_with_its_pictures(server: Server) -> None:
    server.publish(1)
    body = server.http.get("/codebooks/v1/report").json()
    assert body["report"] == {"note": "<script>alert(1)</script>"}
    assert body["gates"]["validity"]["passed"] is True
    picture = server.http.get(body["images"]["before_after.png"])
    assert (picture.headers["Content-Type"], picture.content) == ("image/png", tiny_png())


def test_the_report_as_a_page_escapes_what_it_shows(server: Server) -> None:
    server.publish(1)
    answer = server.http.get("/codebooks/v1/report", headers={"Accept": "text/html,application/json;q=0.9"})
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "25.0 %" in answer.text and "14.2 to 40.2, n = 40" in answer.text
    assert "passed" in answer.text and 'src="data:image/png;base64,' in answer.text
    assert "<script>" not in answer.text and "<b>few" not in answer.text
    assert "&lt;script&gt;" in answer.text


def test_what_the_model_alone_judged_is_marked(server: Server) -> None:
    base = server.service.store.load("v0")
    gates = {
        "second_judge": {"name": "second_judge", "passed": None, "figures": {"not_covered": ["gore", "<i>"]}},
        "languages": {"name": "languages", "passed": None, "figures": {}},
    }
    report = {
        "policy": {"name": "kites", "version": "abc"},
        "judges": [{"name": "self"}, {"name": "opennsfw", "version": "1", "threshold": 0.5}],
        "covered": ["nudity"],
    }
    by_job: dict[str, Any] = {"plain": {}, "self-judged": gates, "odd": {"second_judge": [1]}}
    for job, its_gates in by_job.items():
        draft = replace(base, version="draft", pixel=base.pixel + len(job))
        server.service.store.publish(
            draft, parent="v0", job=job, round=1, figures={}, gates=its_gates, report=report, fence=1
        )
    versions = {book["job"]: book for book in server.http.get("/codebooks").json()["versions"]}
    assert [versions[job]["self_judged"] for job in by_job] == [[], ["gore", "<i>"], []]
    path = f"/codebooks/{versions['self-judged']['version']}/report"
    shown = server.http.get(path, headers={"Accept": "text/html"}).text
    assert "kites" in shown and "opennsfw" in shown and "nudity" in shown
    assert '<span class="mark">self-judged</span> gore, &lt;i&gt;' in shown
    assert shown.count('<span class="dim">not measured</span>') == 2 and "passed" not in shown
    plain = server.http.get(f"/codebooks/{versions['plain']['version']}/report", headers={"Accept": "text/html"})
    assert "opennsfw" in plain.text and 'class="mark"' not in plain.text


def test_the_page_takes_any_report(server: Server) -> None:
    manifest = server.service.store.manifest("v0")
    assert "none" in page(manifest, {"a": [], "b": {}, "c": [{"d": None}, 1.23456789, "<i>"], "e": {"value": 1}}, {})


def test_the_list_of_versions_has_pages(server: Server) -> None:
    for seed in range(1, 4):
        server.publish(seed)

    def names(**query: str | int) -> list[str]:
        return [book["version"] for book in server.http.get("/codebooks", params=query).json()["versions"]]

    assert names(limit=2) == ["v2", "v3"] and names(limit=2, before="v2") == ["v0", "v1"]
    assert names(before="v0") == [] and names() == ["v0", "v1", "v2", "v3"]
    assert server.http.get("/codebooks", params={"before": "newest"}).status_code == 404


def test_the_audit_names_what_became_active_newest_first(server: Server) -> None:
    server.publish(1)
    server.post("/codebooks/v1/activate", {})
    server.post("/codebooks/rollback", {})
    moves = server.http.get("/codebooks/audit").json()
    assert [(m["epoch"], m["version"], m["move"]) for m in moves] == [
        (2, "v0", "rollback"),
        (1, "v1", "activate"),
        (0, "v0", "initialise"),
    ]
    older = server.http.get("/codebooks/audit", params={"before": 2, "limit": 1}).json()
    assert older == moves[1:2]
