"""Refusals of POST /improve: whatever no job could be made of is named before a job is written to the journal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.server import main
from core.wire import HOPELESS
from engine.registry import EMBEDDED
from safety.judges.grammar import EXTRAS
from safety.policy.adult_only import AdultOnly
from tests.support.serving import SECOND_JUDGE, Server, kites, serving, settings_in


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    policies = {
        "kites": kites(),
        "few-pairs": kites(pairs=9),
        "few-validation": kites(validation=4),
        "few-benign": kites(benign=19),
        "no-benign": kites(benign=0, benign_validation=0),
        "faulty": b"prompt,category\na red kite\n",
    }
    (home / "policies").mkdir()
    for name, data in policies.items():
        (home / "policies" / f"{name}.csv").write_bytes(data)
    with serving(settings_in(home, model)) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_waits(server: Server) -> Iterator[None]:
    yield
    for job in server.http.get("/jobs").json():
        if job["ended"] is None:
            server.http.delete(job["links"]["self"])


REFUSED = [
    ({"policy": "none-such"}, "policy", "few-benign"),
    ({"policy": "../kites"}, "policy", "a to z"),
    ({"policy": "faulty"}, "policy", "faulty.csv, line 2"),
    ({"policy": "few-pairs"}, "policy", "red kites has 9 in pair"),
    ({"policy": "few-validation"}, "policy", "red kites has 4 in validation"),
    ({"policy": "few-benign"}, "policy", "it has 19 in pair"),
    ({"policy": "no-benign"}, "policy", "it has 0 in pair and 0 in validation"),
    ({"categories": ["gore"]}, "categories.0", "hate symbols"),  # the model's, and not the policy's
    ({"policy": "kites", "categories": ["violence"]}, "categories.0", "red kites"),
    ({"policy": "kites", "categories": ["red kites", "red kites"]}, "categories.1", "once"),
    ({"second_judge": "none-such"}, "second_judge", "opennsfw"),
    ({"second_judge": "opennsfw@2"}, "second_judge", "from 0 to 1"),
    ({"second_judge": "self"}, "second_judge", "independent"),
    ({"second_judge": "any(opennsfw,self@0.3)"}, "second_judge", "independent"),
    ({"second_judge": "beside"}, "second_judge", "SAFECB_SECOND_JUDGE"),
    ({"second_judge": "referee@0.5"}, "second_judge", "only measures"),
    ({"second_judge": "any(opennsfw,referee)"}, "second_judge", "only measures"),
    ({"policy": "kites", "second_judge": "opennsfw"}, "second_judge", "nudity, sexual; or accept_self_judged"),
    ({"categories": ["violence"], "second_judge": "any(opennsfw,hf:owner/x#x?covers=hate)"}, "second_judge", "hate,"),
    ({"categories": ["weapons"], "second_judge": "guard:owner/x?policies=violence+sexual"}, "second_judge", "gore"),
    ({"second_judge": "hf:/none/such#nsfw"}, "second_judge", "a folder that exists"),
    ({"second_judge": "hf:./none#nsfw"}, "second_judge", "a folder that exists"),
    ({"second_judge": "hf:a/b/c#nsfw"}, "second_judge", "a folder that exists"),
    ({"second_judge": "hf:a/b@c d#nsfw"}, "second_judge", "OWNER/NAME[@REVISION]"),
    ({"second_judge": "guard:~/guard"}, "second_judge", "a folder that exists"),
    ({"second_judge": f"hf:{Path(__file__).parent}#nsfw"}, "second_judge", "config.json"),  # a folder of something else
    ({"second_judge": "zeroshot:owner/clip?texts=/none.json"}, "second_judge", "a file that exists"),
    ({"second_judge": ""}, "second_judge", "at least 1"),
    ({"accept_self_judged": 1}, "accept_self_judged", "boolean"),
    ({"activate": "later"}, "activate", ""),
    ({"activate": 1}, "activate", ""),
    ({"budget": {"images": 99}}, "budget.images", "100"),
    ({"budget": {"minutes": 0}}, "budget.minutes", "1"),
    ({"budget": {"hours": 1}}, "budget.hours", "no field"),
    ({"prompts": ["a kite", "kite " * 900]}, "prompts.1", ""),
]


@pytest.mark.parametrize(("body", "field", "words"), REFUSED, ids=[str(row[0])[:60] for row in REFUSED])
def test_a_body_that_no_job_could_be_made_of(server: Server, body: dict[str, object], field: str, words: str) -> None:
    before = server.http.get("/jobs").json()
    answer = server.post("/improve", body)
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field)
    assert words in problem["allowed"] and problem["value"]
    assert server.http.get("/jobs").json() == before


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"policy": "kites", "categories": ["red kites"]},
        {"policy": "emoji", "categories": ["decay"]},
        {"policy": "kites", "second_judge": "opennsfw", "accept_self_judged": True},
        {"categories": ["violence", "nudity"], "second_judge": "opennsfw"},
        {"categories": ["violence"], "second_judge": "any(opennsfw@0.4,hf:owner/nsfw#nsfw)"},
        {"categories": ["violence"], "second_judge": "guard:owner/x?policies=violence"},
        {"categories": ["violence"], "second_judge": "hf:owner/nsfw@v1.0#nsfw"},
    ],
    ids=str,
)
def test_what_a_job_can_be_made_of(server: Server, body: dict[str, object]) -> None:
    answer = server.post("/improve", body)
    assert answer.status_code == 202, answer.text
    assert {name: answer.json()["request"][name] for name in body} == body


def test_a_prompt_against_the_adult_only_rule_is_named_and_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.improving.RULE", AdultOnly(stems=("swimm",)))
    prompts = ["a man who is swimming", "a boy who is swimming"]
    answer = server.post("/improve", {"policy": "kites", "prompts": prompts})
    assert (answer.status_code, answer.json()["field"]) == (422, "prompts.1") and "swimming" not in answer.text


def test_a_dry_run_answers_with_a_plan_and_makes_no_job(server: Server) -> None:
    before = server.http.get("/jobs").json()
    answer = server.post("/improve", {"policy": "kites", "max_rounds": 2, "dry_run": True})
    plan = answer.json()
    assert answer.status_code == 200 and server.http.get("/jobs").json() == before
    assert [(row["phase"], row["round"]) for row in plan["phases"][:3]] == [
        ("preflight", 0),
        ("baseline", 1),
        ("start", 1),
    ]
    assert {row["round"] for row in plan["phases"]} == {0, 1, 2}
    assert plan["phases"][1]["images"] == 20 + 2  # all benign prompts, and a fifth of the harmful ones as canaries
    assert plan["images_planned"] == sum(row["images"] for row in plan["phases"])
    assert (plan["seconds"], plan["seconds_left"], plan["images_done"]) == (None, None, 0)  # no job has ended yet
    assert plan["memory"] > 0
    sizes = [
        server.post("/improve", {"policy": "emoji", "dry_run": True, **body}).json()["images_planned"]
        for body in ({"budget": {"images": 800}}, {"budget": {"images": 3000}}, {}, {"prompts": ["a kite"]})
    ]
    assert sizes == sorted(sizes) and 8_000 < sizes[2] < 14_000
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    refused = server.post("/improve", {"policy": "none-such", "dry_run": True})
    assert (refused.status_code, refused.json()["field"]) == (422, "policy")


def test_a_dry_run_is_priced_at_the_rates_of_the_last_finished_job(server: Server) -> None:
    journal, body = server.service.journal, {"policy": "emoji", "dry_run": True}
    plans = []
    for rate in (1.0, 3.0):
        job = server.post("/improve", {}).json()["id"]
        fence = journal.begin_attempt(job)
        plan = {"phases": [], "images_planned": 0, "seconds": 0.0, "memory": 0, "rates": {"all": rate, "judge": rate}}
        journal.update(job, attempt=fence, plan=plan, status="finished")
        plans.append(server.post("/improve", body).json())
    assert plans[1]["seconds"] == pytest.approx(3 * plans[0]["seconds"], abs=1) and plans[0]["seconds"] > 60
    short = server.post("/improve", {**body, "budget": {"minutes": 1}}).json()
    assert short["images_planned"] < plans[0]["images_planned"]


def test_one_category_with_enough_prompts_is_enough(server: Server) -> None:
    path = server.service.settings.home / "policies" / "two.csv"
    path.write_bytes(kites() + b"a green kite,green kites,,pair,,\n")
    answer = server.post("/improve", {"policy": "two"})
    assert answer.json()["field"] == "policy" and "green kites has none in validation" in answer.json()["allowed"]
    path.write_bytes(path.read_bytes() + b"one more green kite,green kites,,validation,,\n")
    assert server.post("/improve", {"policy": "two"}).status_code == 202
    answer = server.post("/improve", {"policy": "two", "categories": ["green kites"]})
    assert answer.json()["field"] == "policy" and "green kites has 1 in pair" in answer.json()["allowed"]


def test_a_judge_beside_the_weights_is_one(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).symlink_to(path)
    with serving(settings_in(tmp_path / "home", copy, SAFECB_SECOND_JUDGE="beside")) as server:
        answer = server.post("/improve", {})
        assert (answer.json()["field"], answer.json()["value"]) == ("second_judge", "'beside'")
        (copy / "second_judge").mkdir()
        assert server.post("/improve", {}).json()["field"] == "second_judge"  # without a config.json
        config = EMBEDDED / "second_judge" / "config.json"
        (copy / "second_judge" / "config.json").symlink_to(config)
        assert server.http.get("/judges").json()["names"][0] == "beside"
        answer = server.post("/improve", {"categories": ["nudity"]})
        assert "this one knows decay, gore, substances, weapons" in answer.json()["allowed"]
        assert server.post("/improve", {}).status_code == 202


@pytest.mark.parametrize(("name", "module"), EXTRAS.items())
def test_a_judge_that_is_not_installed_is_refused(
    server: Server, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for judge in (f"{name}@0.4", f"any(hf:owner/nsfw#nsfw,{name})"):
        problem = server.post("/improve", {"second_judge": judge, "accept_self_judged": True}).json()
        assert (problem["field"], problem["value"]) == ("second_judge", repr(name))
        assert f"pip install safecb[{name}]" in problem["allowed"]
    assert name not in server.http.get("/judges").json()["names"]


def test_judges_are_listed_that_a_job_could_have(server: Server) -> None:
    body = server.http.get("/judges").json()
    assert body["usual"] == SECOND_JUDGE and "opennsfw" in body["names"]
    assert not {"self", "referee", "beside"} & set(body["names"])
    assert server.post("/improve", {"second_judge": body["names"][0]}).status_code == 202


@pytest.mark.parametrize("name", ["self", "any(opennsfw,referee)", "none-such"])
def test_a_setting_that_names_no_second_judge_stops_the_server(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path))
    monkeypatch.setenv("SAFECB_SECOND_JUDGE", name)
    assert main() == HOPELESS
    assert "SAFECB_SECOND_JUDGE" in caplog.text
