"""Moves of the active alias: shares of traffic, revocation, and what a rollback undoes; old releases read the rest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from codebook.live import LiveCodebooks
from codebook.mode import Mode
from codebook.pointer import ActiveRecord
from codebook.store import CodebookStore
from core.errors import BadInput, Conflict, NotFound, Unavailable
from tests.support.books import open_store, output_draft, publish

UNITS = [f"caller {i % 20}\na prompt {i}" for i in range(10_000)]
SPLIT = {"v1": 0.9, "v2": 0.1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> CodebookStore:
    """A store of v0 to v3 in which v1 is active."""
    store = open_store(root, versions=3)
    store.activate("v1", by="a")
    return store


def drawn(record: ActiveRecord) -> Counter[str]:
    return Counter(record.drawn_for(unit) for unit in UNITS)


def test_units_fall_on_versions_by_their_shares_and_stay_there(store: CodebookStore) -> None:
    tenth = store.share(SPLIT, by="a")[1]
    assert (tenth.version, tenth.traffic, tenth.split, tenth.move) == ("v1", SPLIT, tenth.epoch, "traffic")
    assert abs(drawn(tenth)["v2"] / len(UNITS) - 0.1) < 0.01
    half = store.share({"v1": 0.5, "v2": 0.5}, by="a")[1]
    assert abs(drawn(half)["v2"] / len(UNITS) - 0.5) < 0.02
    assert half.split == tenth.split  # the same split goes on, with other shares
    inside = [unit for unit in UNITS if tenth.drawn_for(unit) == "v2"]
    assert {half.drawn_for(unit) for unit in inside} == {"v2"}
    three = store.share({"v1": 0.6, "v2": 0.1, "v3": 0.3}, by="a")[1]
    assert three.split == three.epoch  # another one
    shares = {version: count / len(UNITS) for version, count in drawn(three).items()}
    assert all(abs(shares[version] - share) < 0.015 for version, share in three.traffic.items())


def test_the_next_split_chooses_other_units(store: CodebookStore) -> None:
    first = store.share(SPLIT, by="a")[1]
    store.share({"v1": 1.0}, by="a")
    second = store.share(SPLIT, by="a")[1]
    inside = [unit for unit in UNITS if first.drawn_for(unit) == "v2"]
    both = sum(second.drawn_for(unit) == "v2" for unit in inside) / len(inside)
    assert 0.05 < both < 0.16


@pytest.mark.parametrize(
    "traffic",
    [{"v2": 1.0}, {"v1": 0.0, "v2": 1.0}, {"v1": 0.5}, {"v1": 0.7, "v2": 0.7}, {"v1": 1.5, "v2": -0.5}],
)
def test_shares_that_are_none_are_refused(store: CodebookStore, traffic: dict[str, float]) -> None:
    before = store.active()
    with pytest.raises(BadInput, match="traffic"):
        store.share(traffic, by="a")
    with pytest.raises(NotFound):
        store.share({"v1": 0.5, "v9": 0.5}, by="a")
    with pytest.raises(Conflict):
        store.share(SPLIT, by="a", expected_epoch=7)
    assert store.active() == before


def test_activation_and_rollback_end_a_split(store: CodebookStore) -> None:
    store.share(SPLIT, by="a")
    assert store.rollback(by="a")[1].version == "v1"  # what is undone is the split
    assert store.active().traffic == {}
    assert store.rollback(by="a")[1].version == "v0"
    store.activate("v1", by="a")
    store.share(SPLIT, by="a")
    assert store.activate("v1", by="a")[1].traffic == {}
    store.share(SPLIT, by="a")
    moved = store.activate("v2", by="a")[1]
    assert (moved.version, moved.traffic, moved.split) == ("v2", {}, 0)
    assert store.rollback(by="a")[1].version == "v1"


def test_a_revoked_version_is_left_and_not_come_back_to(store: CodebookStore) -> None:
    store.activate("v2", by="a")
    moved = store.revoke("v2", by="a")[1]
    assert (moved.version, moved.revoked, moved.move) == ("v1", ["v2"], "revoke")
    with pytest.raises(Conflict, match="v2 is revoked"):
        store.activate("v2", by="a")
    with pytest.raises(Conflict, match="v2 is revoked"):
        store.rollback(by="a", to="v2")
    with pytest.raises(Conflict, match="v2 is revoked"):
        store.share(SPLIT, by="a")
    store.activate("v3", by="a")
    store.revoke("v1", by="a")
    assert store.active().version == "v3"
    assert store.rollback(by="a")[1].version == "v0"  # v1 and v2 are revoked
    assert store.revoke("v3", by="a")[1].revoked == ["v1", "v2", "v3"]
    assert store.restore("v2", by="a")[1].revoked == ["v1", "v3"]
    assert store.activate("v2", by="a")[1].version == "v2"


def test_the_base_stays_and_moves_that_change_nothing_are_none(store: CodebookStore) -> None:
    with pytest.raises(BadInput, match="v0"):
        store.revoke("v0", by="a")
    with pytest.raises(NotFound):
        store.revoke("v9", by="a")
    old, new = store.restore("v3", by="a")
    assert old == new == store.active()
    store.revoke("v3", by="a")
    old, new = store.revoke("v3", by="b")
    assert old == new


def test_a_revocation_ends_the_split_it_takes_part_in_alone(store: CodebookStore) -> None:
    store.share(SPLIT, by="a")
    assert store.revoke("v3", by="a")[1].traffic == SPLIT
    assert store.revoke("v2", by="a")[1].traffic == {}
    assert store.active().version == "v1"


def test_records_without_splits_and_revocations_are_those_of_older_releases(store: CodebookStore, root: Path) -> None:
    own = {"version", "epoch", "previous", "moved_at", "moved_by", "move"}
    assert json.loads((root / "ACTIVE").read_text()).keys() == own
    store.share(SPLIT, by="a")
    store.revoke("v2", by="a")
    store.restore("v2", by="a")
    assert json.loads((root / "ACTIVE").read_text()).keys() == own
    lines = [json.loads(line) for line in (root / "audit.jsonl").read_text().splitlines()]
    assert [line["move"] for line in lines] == ["initialise", "activate", "traffic", "revoke", "restore"]
    assert lines[3]["revoked"] == ["v2"]


def test_a_lease_follows_the_split_and_a_revocation_beats_pins(store: CodebookStore) -> None:
    live = LiveCodebooks(store, slots=2)
    live.start()
    live.share(SPLIT, by="a")
    record = live.active
    for unit in UNITS[:50]:
        with live.lease(unit=unit) as book:
            assert book.version == record.drawn_for(unit)
    with live.lease("v2") as pinned, live.lease() as active:
        assert (pinned.version, active.version) == ("v2", "v1")
        live.revoke("v2", by="a")
        with pytest.raises(NotFound, match="v2 is revoked"), live.lease("v2"):
            pass
    assert {version for unit in UNITS[:50] for version in [leased(live, unit)]} == {"v1"}
    live.restore("v2", by="a")
    with live.lease("v2"):
        pass


def leased(live: LiveCodebooks, unit: str) -> str:
    with live.lease(unit=unit) as book:
        return book.version


def test_versions_that_share_stay_in_memory(store: CodebookStore) -> None:
    live = LiveCodebooks(store, slots=3)
    live.start()
    live.share(SPLIT, by="a")
    for version in ("v0", "v3", "v0"):
        with live.lease(version):
            pass
    assert {"v1", "v2"} < set(live.resident())


def test_a_revocation_counts_where_the_next_version_cannot_be_loaded(store: CodebookStore, root: Path) -> None:
    live = LiveCodebooks(store)
    live.start()
    store.activate("v2", by="a")
    store.activate("v3", by="a")
    live.refresh()
    store.revoke("v3", by="b")
    (root / "versions" / "v2" / "codebook.safetensors").write_bytes(b"damaged")
    assert not live.refresh()
    for version in ("active", "v3"):
        with pytest.raises((NotFound, Unavailable), match="v3 is revoked"), live.lease(version):
            pass


def test_a_revocation_passes_over_what_is_damaged(store: CodebookStore, root: Path) -> None:
    for version in ("v2", "v3"):
        store.activate(version, by="a")
    (root / "versions" / "v2" / "codebook.safetensors").write_bytes(b"damaged")
    assert store.revoke("v3", by="a")[1].version == "v1"
    (root / "audit.jsonl").write_bytes(b"damaged\n")
    assert store.revoke("v1", by="a")[1].version == "v0"


def test_nothing_is_derived_from_or_to_a_revoked_version(root: Path) -> None:
    store = open_store(root)
    publish(store, output_draft(1))
    store.derive("v1", "refuse")
    store.revoke("v1", by="a")
    for version, mode in (("v1", "rewrite"), ("v2", "edit")):
        with pytest.raises(Conflict, match="v1 is revoked"):
            store.derive(version, cast("Mode", mode))


def test_nine_versions_do_not_share(root: Path) -> None:
    store = open_store(root, versions=8)
    with pytest.raises(BadInput, match="at most 8"):
        store.share({f"v{n}": 0.1 for n in range(8)} | {"v8": 0.2}, by="a")


def test_a_server_whose_version_is_revoked_says_so_and_an_older_record_restores_nothing(
    store: CodebookStore, root: Path
) -> None:
    store.activate("v2", by="a")
    store.activate("v3", by="a")
    live = LiveCodebooks(store)
    live.start()
    store.revoke("v3", by="b")
    (root / "versions" / "v2" / "codebook.safetensors").write_bytes(b"damaged")
    live.refresh()
    with pytest.raises(Unavailable, match="v3 is revoked"):
        live.check_fresh()
    fresh = LiveCodebooks(store)
    fresh.start()  # goes back to a record in which nothing was revoked
    with pytest.raises(NotFound, match="v3 is revoked"), fresh.lease("v3"):
        pass
    with fresh.lease("v3", is_drawn=True) as book:
        assert book.version == "v3"


def test_a_split_is_followed_whole_where_memory_is_full(store: CodebookStore) -> None:
    live = LiveCodebooks(store, slots=3)
    live.start()
    for version in ("v2", "v0"):
        with live.lease(version):
            pass
    live.share({"v1": 0.4, "v2": 0.3, "v3": 0.3}, by="a")
    assert {leased(live, unit) for unit in UNITS[:200]} == {"v1", "v2", "v3"}
