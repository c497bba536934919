"""The CUSUM of live verdicts: servers count together, a caller's same prompt once, and only where one version draws."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from app.background import housekeeping, verdict_tally
from app.background.verdict_tally import OwnTally, SharedTally, Tally
from codebook.trials.cusum import Cusum
from tests.support.servers.house import RedisProcess, redis_process
from tests.support.serving import Server, serving, settings_in, wait_for
from tests.support.trials.live_result import live_result


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture(params=["own", "shared"])
def tally(request: pytest.FixtureRequest, redis: RedisProcess) -> Iterator[Tally]:
    tally: Tally = OwnTally() if request.param == "own" else SharedTally(redis.url, f"rq:{request.node.name}")
    yield tally
    tally.close()


def test_a_unit_counts_once_and_each_version_by_itself(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_tally, "REMEMBERED", 3)
    for unit in ("a", "a", "b"):
        state = tally.count("v0", unit, True)
    assert state == Cusum().seen(True).seen(True) == tally.read("v0")
    for unit in ("c", "d"):
        tally.count("v0", unit, False)
    assert tally.count("v0", "b", True) == tally.count("v0", "d", True)
    assert getattr(tally.count("v0", "a", True), "images", 0) == 5  # "a" is beyond those that are remembered
    assert tally.count("v1", "a", True) == Cusum().seen(True) == tally.read("v1")


def test_servers_that_count_meanwhile_lose_nothing(redis: RedisProcess) -> None:
    tallies = [SharedTally(redis.url, "rq:meanwhile") for _ in range(3)]

    def count(tally: SharedTally, name: int) -> None:
        for i in range(40):
            tally.count("v0", f"{name} {i}", i % 10 == 0)

    threads = [Thread(target=count, args=(tally, name)) for name, tally in enumerate(tallies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = tallies[0].read("v0")
    assert state is not None and (state.images, state.unsafe) == (120, 12)


def test_a_redis_that_is_away_counts_nothing() -> None:
    tally = SharedTally("unix:///nowhere.sock", "rq:away")
    assert tally.count("v0", "a", True) is None and tally.read("v0") is None


def note(server: Server, prompt: str, version: str = "v0") -> None:
    """Let a server see an unsafe image as if a caller who named no version had got it."""
    server.service.cusum.note(prompt, [live_result(server, version, prompt, True)])


def counted(server: Server) -> int:
    images: int = server.http.get("/traffic").json()["cusum"]["images"]
    return images


def test_servers_raise_the_alert_together_once_a_version_draws_for_all(
    model: Path, tmp_path: Path, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.2)
    with (
        serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=redis.url)) as one,
        serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=redis.url)) as two,  # of the same home, so of one count
    ):
        version = one.publish(1)
        one.draw(prompt="counts", n=2)
        one.draw(prompt="named", codebook="v0")
        wait_for("a drawn image counts", lambda: counted(one))
        assert one.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5}).status_code == 200
        note(one, "of a split")
        assert one.http.delete("/codebooks/traffic").status_code == 200
        note(one, "of another version", version)
        wait_for("both are level", lambda: one.service.live.active == two.service.live.active)
        for i in range(8):
            note((one, two)[i % 2], f"prompt {i}")
        for server in (one, two):
            wait_for("all count", lambda server=server: counted(server) == 9)  # type: ignore[misc]
            body = server.http.get("/traffic").json()
            assert (body["alert"], body["cusum"]["alert"], body["windows"]) == (True, True, [])
            text = server.http.get("/metrics").text
            assert "safecb_live_traffic_alert 1.0" in text and "safecb_live_traffic_cusum 11.0" in text
        raised = re.compile("live traffic alert raised: by CUSUM, [89] of [89] prompts unsafe under v0")
        wait_for("both say so", lambda: len(raised.findall(caplog.text)) == 2)
        one.post(f"/codebooks/{version}/activate", {})
        assert counted(one) == 0 and not one.http.get("/traffic").json()["alert"]


def test_without_redis_a_server_counts_alone(server: Server) -> None:
    note(server, "one")
    note(server, "one")
    note(server, "two")
    wait_for("both count", lambda: counted(server) == 2)
