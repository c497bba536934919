"""The canary guard: it ends splits of worse versions soon, of equal ones almost never, once, and says why."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from app.background import canary_guard as module
from app.background import housekeeping
from app.background.canary_guard import GUARD, LIMIT, evidence
from core.errors import NoAccess
from records.image_log import ImageMemory, JudgedImage, KeptImage
from tests.support.serving import Server, serving, settings_in, wait_for

SPLITS = 200


def images(rng: random.Random, count: int, share: float, stable: float, canary: float) -> list[JudgedImage]:
    """Images of other prompts each, under v1 and, with a share, under v2, unsafe at these rates."""
    versions = ["v2" if rng.random() < share else "v1" for _ in range(count)]
    rates = {"v1": stable, "v2": canary}
    return [JudgedImage(i, version, f"prompt {i}", rng.random() < rates[version]) for i, version in enumerate(versions)]


def retreats(share: float, stable: float, canary: float, count: int) -> float:
    """The share of splits that end within `count` images."""
    rng = random.Random(7)
    ended = [evidence(images(rng, count, share, stable, canary), "v1", "v2").e >= LIMIT for _ in range(SPLITS)]
    return sum(ended) / SPLITS


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("rate", [0.0, 0.03, 0.3])
def test_equally_safe_versions_stay(share: float, rate: float) -> None:
    assert retreats(share, rate, rate, 3000) <= 0.01


def test_safer_versions_stay() -> None:
    assert retreats(0.1, 0.2, 0.02, 3000) == 0


@pytest.mark.parametrize(("canary", "count"), [(0.25, 1500), (0.5, 600), (0.15, 4000)])
def test_worse_versions_are_found_soon(canary: float, count: int) -> None:
    assert retreats(0.1, 0.05, canary, count) >= 0.95


def test_a_repeated_prompt_counts_once() -> None:
    rng = random.Random(1)
    drawn = images(rng, 200, 0.5, 0.0, 0.0)
    abuse = [JudgedImage(1000 + i, "v2", "the same again", True) for i in range(500)]
    seen = evidence(drawn + abuse, "v1", "v2")
    assert seen.unsafe == 1 and seen.e < 3
    assert seen.images + seen.beside_images == 201


def test_without_images_of_both_nothing_is_known() -> None:
    for version in ("v1", "v2"):
        drawn = [JudgedImage(i, version, f"{i}", True) for i in range(50)]
        assert evidence(drawn, "v1", "v2").e == 1.0


def keep(memory: ImageMemory, version: str, unsafe: bool, count: int) -> None:
    tokens = torch.zeros(4, dtype=torch.int64)
    names = [f"{version}-{unsafe}-{i}" for i in range(count)]
    memory.keep([KeptImage(name, f"a prompt {name}", version, 0, unsafe, "gore", tokens) for name in names])


def test_a_split_ends_by_itself_once_and_says_why(server: Server) -> None:
    version, memory = server.publish(1), server.service.images
    keep(memory, version, True, 300)  # of an earlier split, or pinned: before this one
    assert server.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5}).status_code == 200
    housekeeping._guard(server.service)
    assert server.service.live.active.traffic
    for i in range(40):
        tokens = torch.zeros(4, dtype=torch.int64)
        for name, unsafe in (("v0", False), (version, True)):
            memory.keep([KeptImage(f"{name}{i}", f"prompt {name} {i}", name, 0, unsafe, "gore", tokens)])
    seen = server.http.get("/codebooks/traffic").json()["evidence"][version]
    assert (seen["images"], seen["unsafe"], seen["beside_images"], seen["beside_unsafe"]) == (40, 40, 40, 0)
    assert f'safecb_canary_evidence{{codebook="{version}"}}' in server.http.get("/metrics").text
    for _ in range(2):
        housekeeping._guard(server.service)
    record = server.http.get("/codebooks/audit").json()[0]
    assert (record["moved_by"], record["traffic"], record["version"]) == (GUARD, {}, "v0")
    assert "40 of 40 beside 0 of 40" in record["reason"] and version in record["reason"]
    assert server.service.live.active.epoch == record["epoch"] == 2


def test_an_image_log_that_is_away_ends_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    version = server.publish(1)
    server.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5})

    def away(self: ImageMemory, time: float) -> list[JudgedImage]:
        raise NoAccess(Path("images.db"), "failing", "look")

    monkeypatch.setattr(ImageMemory, "since", away)
    housekeeping._guard(server.service)
    assert server.service.live.active.traffic


def test_the_guard_runs_on_a_real_server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.2)
    monkeypatch.setattr(module, "LIMIT", 5.0)
    with serving(settings_in(tmp_path, model)) as server:
        version, memory = server.publish(1), server.service.images
        server.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5})
        for i in range(20):
            tokens = torch.zeros(4, dtype=torch.int64)
            for name in ("v0", version):
                memory.keep([KeptImage(f"{name}{i}", f"{name} {i}", name, 0, name != "v0", "gore", tokens)])
        wait_for("the split is over", lambda: not server.service.live.active.traffic)
