"""Shares of traffic and revocations through running servers: who draws under what, at once and on every server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import main
from tests.support.serving import Server, serving, settings_in, wait_for

PROMPTS = [f"a red apple and {i} stars" for i in range(60)]


@pytest.fixture
def second(server: Server, model: Path, tmp_path: Path) -> Iterator[Server]:
    """Another server on the store of the first, with a home of its own."""
    store = str(server.service.settings.store)
    with serving(settings_in(tmp_path / "second", model, SAFECB_STORE=store)) as other:
        yield other


def share(server: Server, **shares: float) -> dict[str, object]:
    answer = server.http.put("/codebooks/traffic", json=shares)
    assert answer.status_code == 200, answer.text
    new: dict[str, object] = answer.json()["new"]
    return new


def versions(server: Server) -> dict[str, str]:
    """The version that draws for each prompt."""
    return {prompt: server.draw(prompt=prompt).json()["codebook"] for prompt in PROMPTS}


def test_callers_are_split_by_prompt_and_equally_on_every_server(server: Server, second: Server) -> None:
    version = server.publish(1)
    record = share(server, v0=0.5, **{version: 0.5})
    wait_for("the other server follows", lambda: second.service.live.active.epoch == record["epoch"])
    drawn = versions(server)
    assert 15 < Counter(drawn.values())[version] < 45
    assert versions(second) == drawn
    counted = server.http.get("/codebooks/traffic").json()
    assert (counted["active"], counted["shares"], counted["since"]) == (
        "v0",
        {"v0": 0.5, version: 0.5},
        record["epoch"],
    )
    seen, share_of = counted["evidence"][version], Counter(drawn.values())
    assert (seen["images"], seen["beside_images"]) == (share_of[version], share_of["v0"])
    assert server.draw(codebook=version).json()["codebook"] == version  # a pin is a pin
    listed = {book["version"]: book["state"] for book in server.http.get("/codebooks").json()["versions"]}
    assert listed == {"v0": "active", version: "canary"}
    assert f'safecb_codebook_share{{codebook="{version}"}} 0.5' in server.http.get("/metrics").text
    assert server.http.delete("/codebooks/traffic").json()["new"]["traffic"] == {}
    assert set(versions(server).values()) == {"v0"}


def test_a_revocation_reaches_every_server_within_a_second_and_beats_pins(server: Server, second: Server) -> None:
    version = server.publish(1)
    server.post(f"/codebooks/{version}/activate", {})
    wait_for("the other server follows", lambda: second.service.live.active.version == version)
    assert second.draw(codebook=version).status_code == 200
    began = time.monotonic()
    assert server.post(f"/codebooks/{version}/revoke", None).json()["new"]["revoked"] == [version]
    wait_for("the other server draws nothing under it", lambda: second.draw(codebook=version).status_code == 422)
    assert time.monotonic() - began < 30  # a poll is 0.25 s; the bar of a second is measured on a quiet machine
    refused = second.draw(codebook=version).json()
    assert refused["field"] == "codebook" and "not revoked" in refused["allowed"]
    assert {s.draw().json()["codebook"] for s in (server, second)} == {"v0"}
    listed = {book["version"]: book["state"] for book in second.http.get("/codebooks").json()["versions"]}
    assert listed[version] == "revoked"
    assert second.post(f"/codebooks/{version}/activate", {}).status_code == 409
    server.post(f"/codebooks/{version}/restore", None)
    wait_for("it may be drawn under again", lambda: second.draw(codebook=version).status_code == 200)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"v1": 1.0}, 422),
        ({"v0": 0.5, "v1": 0.4}, 422),
        ({"v0": 0.5, "v1": "much"}, 422),
        ({"v0": 0.5, "active": 0.5}, 422),
        ({"v0": 2, "v1": -1}, 422),
        ({"v0": 0.5, "v9": 0.5}, 404),
        ([0.5, 0.5], 422),
    ],
)
def test_shares_that_are_none_are_refused_by_name(server: Server, body: object, status: int) -> None:
    server.publish(1)
    answer = server.http.put("/codebooks/traffic", json=body)
    assert answer.status_code == status, answer.text
    assert server.http.get("/codebooks/active").json()["epoch"] == 0


def test_shares_and_revocations_are_audited_and_refuse_a_stale_epoch(server: Server) -> None:
    version = server.publish(1)
    share(server, v0=0.9, **{version: 0.1})
    stale = server.http.put("/codebooks/traffic?expected_epoch=0", json={"v0": 1.0})
    assert stale.status_code == 409
    server.post(f"/codebooks/{version}/revoke", None)
    moves = server.http.get("/codebooks/audit").json()
    assert [(move["move"], move["traffic"], move["revoked"]) for move in moves[:2]] == [
        ("revoke", {}, [version]),
        ("traffic", {"v0": 0.9, version: 0.1}, []),
    ]
    assert server.post("/codebooks/v0/revoke", None).status_code == 422


def test_the_command_line_shares_and_revokes(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = server.publish(1)
    there = ["--server", server.url]
    assert main(["codebooks", "traffic", "v0=0.75", f"{version}=0.25", *there]) == 0
    output = capsys.readouterr().out
    assert f"{version}       25.0%" in output and f"{version}: 0 of 0 images unsafe" in output
    assert main(["codebooks", "traffic", "v0:1", *there]) == 1
    assert main(["codebooks", "revoke", version, *there]) == 0
    assert f"{version} is revoked, v0 is active" in capsys.readouterr().out
    assert main(["codebooks", "restore", version, *there]) == 0
    monkeypatch.setenv("SAFECB_HOME", str(server.service.settings.home))
    assert main(["codebooks", "traffic", "v0=0.5", f"{version}=0.5", "--offline"]) == 0
    assert main(["codebooks", "revoke", version, "--offline"]) == 0
    assert main(["codebooks", "traffic", "--offline"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["v0", "100.0%"]
    monkeypatch.setenv("SAFECB_JUDGE", "off")
    assert main(["codebooks", "restore", version, "--offline"]) == 0
    assert main(["codebooks", "traffic", "v0=0.5", f"{version}=0.5", "--offline"]) == 1
    assert "SAFECB_JUDGE=off" in capsys.readouterr().err and not server.service.store.active().traffic
    assert main(["codebooks", "traffic", "v0=1", f"{version}=0", "--offline"]) == 0
