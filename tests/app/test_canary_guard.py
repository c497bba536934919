"""The canary guard: it ends splits of worse versions soon, of equal ones almost never, once, and says why."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from app.background import canary_guard as module
from app.background import housekeeping
from app.background.canary_guard import GUARD
from codebook.live import LiveCodebooks
from codebook.trials.bets import BETS, LIMIT
from codebook.trials.duel import Duel, Evidence
from core.errors import NoAccess
from tests.support.serving import Server, serving, settings_in, wait_for
from tests.support.trials.live_result import live_result

SPLITS = 200


def ends(rng: random.Random, share: float, stable: float, canary: float, count: int) -> bool:
    """Whether a split ends within `count` images, with a share of them under the canary, unsafe at these rates."""
    duel = Duel()
    for _ in range(count):
        is_own = rng.random() < share
        duel.see(is_own, rng.random() < (canary if is_own else stable))
    assert duel.is_over == duel.evidence().is_worse
    return duel.is_over


def retreats(share: float, stable: float, canary: float, count: int) -> float:
    """The share of splits that end within `count` images."""
    rng = random.Random(7)
    return sum(ends(rng, share, stable, canary, count) for _ in range(SPLITS)) / SPLITS


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("rate", [0.0, 0.03, 0.3])
def test_equally_safe_versions_stay(share: float, rate: float) -> None:
    assert retreats(share, rate, rate, 3000) <= 0.01


def test_safer_versions_stay() -> None:
    assert retreats(0.1, 0.2, 0.02, 3000) == 0


@pytest.mark.parametrize(("canary", "count"), [(0.25, 1500), (0.5, 600), (0.15, 4000)])
def test_worse_versions_are_found_soon(canary: float, count: int) -> None:
    assert retreats(0.1, 0.05, canary, count) >= 0.95


def test_a_run_counts_once_it_is_over() -> None:
    duel = Duel()
    for is_own, unsafe in [(False, False)] * 3 + [(True, True)] * 2:
        duel.see(is_own, unsafe)
    assert duel.evidence().e == 1.0  # the canary's next image may be safe
    duel.see(False, False)
    assert duel.evidence() == Evidence(2, 2, 4, 0, {1000: 1})
    assert duel.evidence().e == pytest.approx(sum(1 + bet for bet in BETS) / len(BETS))


def test_differences_are_rounded_in_the_favour_of_the_version() -> None:
    duel = Duel()
    for is_own, unsafe in [(False, True), (False, False), (False, False), (True, False), (False, False)]:
        duel.see(is_own, unsafe)
    assert duel.differences == {-334: 1}


@pytest.mark.parametrize("is_own", [True, False])
def test_without_images_of_both_nothing_is_known(is_own: bool) -> None:
    duel = Duel()
    for _ in range(50):
        duel.see(is_own, True)
    assert duel.evidence().e == 1.0


def note(server: Server, version: str, prompt: str, unsafe: bool) -> None:
    """Let the guard see an image as if a caller who named no version had got it."""
    server.service.guard.note([live_result(server, version, prompt, unsafe)])


def split(server: Server) -> str:
    version = server.publish(1)
    assert server.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5}).status_code == 200
    return version


def seen(server: Server, version: str) -> dict[str, float]:
    evidence: dict[str, float] = server.http.get("/codebooks/traffic").json()["evidence"][version]
    return evidence


def test_a_split_ends_by_itself_once_and_says_why(server: Server) -> None:
    version = split(server)
    for i in range(40):
        note(server, "v0", f"a {i}", False)
        note(server, version, f"b {i}", True)
    shown = seen(server, version)
    assert shown["images"] == shown["unsafe"] > 5 and shown["beside_unsafe"] == 0
    assert f'safecb_canary_evidence{{codebook="{version}"}}' in server.http.get("/metrics").text
    for _ in range(2):
        server.service.guard.act()
    record = server.http.get("/codebooks/audit").json()[0]
    assert (record["moved_by"], record["traffic"], record["version"]) == (GUARD, {}, "v0")
    evidence = Evidence.read(record["evidence"])
    own, beside = evidence.images, evidence.beside_images
    assert 0 < own < 40 and f"{own} of {own} beside 0 of {beside}" in record["reason"]  # none after the decision counts
    assert record["evidence"] == {"decision": "retreat", "version": version, "active": "v0", **evidence.to_dict()}
    assert evidence.limit == LIMIT and evidence.is_worse
    assert evidence.curve[-1] == (own, record["evidence"]["e"]) and len(evidence.curve) > 2
    last = max(evidence.differences)
    assert not replace(evidence, differences={**evidence.differences, last: evidence.differences[last] - 1}).is_worse
    assert server.service.live.active.epoch == record["epoch"] == 2


def test_only_callers_who_name_no_version_count_and_a_prompt_once(server: Server) -> None:
    version = split(server)
    server.draw(prompt="named", codebook=version)
    server.post("/codebooks/compare", {"prompt": "named", "versions": ["v0", version]})
    assert [seen(server, version)[name] for name in ("images", "beside_images")] == [0, 0]
    for _ in range(2):
        server.draw(prompt="unnamed", n=2)
    assert sum(seen(server, version)[name] for name in ("images", "beside_images")) == 1
    for _ in range(500):
        note(server, version, "the same again", True)
    assert seen(server, version)["unsafe"] == 1


def test_another_split_begins_anew_and_other_shares_do_not(server: Server) -> None:
    version = split(server)
    note(server, version, "a", True)
    server.http.put("/codebooks/traffic", json={"v0": 0.75, version: 0.25})
    assert seen(server, version)["images"] == 1
    server.http.delete("/codebooks/traffic")
    note(server, version, "b", True)
    server.http.put("/codebooks/traffic", json={"v0": 0.75, version: 0.25})
    assert seen(server, version)["images"] == 0


def test_a_store_that_is_away_ends_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    version = split(server)
    monkeypatch.setattr(module, "LIMIT", 1.0)

    def away(*arguments: object, **more: object) -> None:
        raise NoAccess(Path("ACTIVE"), "failing", "look")

    monkeypatch.setattr(LiveCodebooks, "move", away)
    note(server, version, "a", True)
    server.service.guard.act()
    assert server.service.live.active.traffic


def test_the_guard_runs_on_a_server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.2)
    monkeypatch.setattr(module, "LIMIT", 5.0)
    with serving(settings_in(tmp_path, model)) as server:
        version = split(server)
        for i in range(20):
            note(server, "v0", f"a {i}", False)
            note(server, version, f"b {i}", True)
        wait_for("the split is over", lambda: not server.service.live.active.traffic)
