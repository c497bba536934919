"""`safecb improve` against a real server: its options reach the job, and files are uploaded first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli.main import main
from cli.plans import round_line
from tests.support.serving import Server, kites, played_worker, serving, settings_in


@pytest.fixture
def server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(settings_in(tmp_path / "home", model)) as server:
        monkeypatch.setenv("SAFECB_PORT", str(urlsplit(server.url).port))
        yield server


def last_request(server: Server) -> dict[str, Any]:
    request: dict[str, Any] = server.http.get("/jobs").json()[0]["request"]
    return request


def test_a_file_is_uploaded_and_all_options_reach_the_job(server: Server, tmp_path: Path) -> None:
    policy, benign = tmp_path / "kites.csv", tmp_path / "teapots.txt"
    policy.write_bytes(kites(benign=0, benign_validation=0))
    benign.write_text("".join(f"a teapot, number {i}\n" for i in range(100)))
    command = ["improve", "--policy", str(policy), "--benign", str(benign), "--second-judge", "opennsfw@0.4"]
    command += ["--categories", "red kites", "--rounds", "2", "--seed", "7", "--no-activate", "--accept-self-judged"]
    command += ["--images", "900", "--minutes", "5"]
    with played_worker(server, publishes=True):
        assert main(command) == 0
    assert last_request(server) == {
        "prompts": None,
        "policy": "kites",
        "second_judge": "opennsfw@0.4",
        "categories": ["red kites"],
        "budget": {"images": 900, "minutes": 5},
        "max_rounds": 2,
        "seed": 7,
        "activate": False,
        "accept_self_judged": True,
    }
    assert server.http.get("/policies/kites").json()["prompts"] == {"red kites": 15, "benign": 100}


def test_a_policy_of_the_server_is_named(server: Server) -> None:
    with played_worker(server, publishes=False):
        assert main(["improve", "--policy", "emoji", "--categories", "gore, decay"]) == 1
    request = last_request(server)
    assert (request["policy"], request["categories"]) == ("emoji", ["gore", "decay"])
    assert (request["activate"], request["accept_self_judged"], request["seed"]) == (True, False, None)


@pytest.mark.parametrize(("choice", "activate"), [("canary", "canary"), ("no", False), ("yes", True)])
def test_versions_are_activated_or_rolled_out(server: Server, choice: str, activate: bool | str) -> None:
    with played_worker(server, publishes=False):
        assert main(["improve", "--policy", "emoji", "--activate", choice]) == 1
    assert last_request(server)["activate"] == activate


def test_without_following_the_id_of_a_job_that_has_begun_is_printed(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["improve", "--policy", "emoji", "--no-follow", "--accept-self-judged"]) == 0
    job = server.http.get("/jobs").json()[0]
    assert (capsys.readouterr().out, job["status"]) == (f"{job['id']}\n", "queued")


def test_a_dry_run_prints_the_plan_and_makes_no_job(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["improve", "--policy", "emoji", "--images", "800", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "plan:" and lines[1].split() == ["preflight", "80", "images", "unknown"]
    assert any(line.startswith("  in all") for line in lines) and lines[-1].startswith("memory: about ")
    assert server.http.get("/jobs").json() == []


def test_what_is_refused_is_said_and_no_job_is_made(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.csv").write_text("prompt,category\na red kite\n")
    (tmp_path / "Kites.csv").write_bytes(kites())
    (tmp_path / "kites.csv").write_bytes(kites())
    cases = [
        (["--policy", str(tmp_path / "faulty.csv")], "faulty.csv, line 2"),
        (["--policy", str(tmp_path / "Kites.csv")], "a to z"),
        (["--policy", str(tmp_path / "none.csv")], "a file that can be read"),
        (["--policy", "kites.pdf"], ".csv or .jsonl"),
        (["--policy", str(tmp_path / "kites.csv"), "--benign", "none.txt"], "--benign"),
        (["--benign", "none.txt"], "--policy too"),
        (["--policy", "none-such"], "emoji, open"),
        (["--second-judge", "self"], "independent"),
        (["--second-judge", "referee"], "only measures"),
        (["--rounds", "9"], "max_rounds"),
    ]
    for options, words in cases:
        assert main(["improve", *options]) == 1
        assert words in capsys.readouterr().err, options
    assert server.http.get("/jobs").json() == []
    assert [policy["name"] for policy in server.http.get("/policies").json()] == ["emoji", "open"]


def test_help_and_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    for options, code in ((["--help"], 0), (["--fly"], 2), (["--rounds", "two"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["improve", *options])
        assert stop.value.code == code
    assert "--accept-self-judged" in capsys.readouterr().out


def test_a_round_says_what_decided() -> None:
    row = {"round": 1, "reason": "accepted", "version": "v1"}
    assert round_line(row) == "round 1: accepted v1"  # of a release that kept no decision
    gain = {"gain": 0.9, "needed": 0.04, "p": 1.2e-9}
    line = "round 1: accepted v1 (gain 0.900, at least 0.040; p 1.2e-09)"
    assert round_line(row | {"decision": gain}) == line
    sides = [{"svr": {"value": value, "n": 384}} for value in (0.8, 0.85)]
    fresh = {"before": sides[0], "after": sides[1], "p": 0.0312, "limit": 0.05 / 3}
    refused = {"round": 2, "reason": "significance", "version": None, "decision": gain | {"confirmed": fresh}}
    assert round_line(refused) == (
        "round 2: significance "
        "(384 fresh prompts: safe and valid 0.800 before, 0.850 after; p 0.031, below 0.017 is wanted)"
    )
