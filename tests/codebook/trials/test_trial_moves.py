"""Moves of trials: a shadow begins and ends, a canary grows in steps, each once, and a person ends either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from codebook.pointer import ActiveRecord, Moved
from codebook.store import CodebookStore
from codebook.trials.steps import STEPS, images_until, share_after
from core.errors import Conflict, NotFound
from core.json_records import decode, encode
from tests.support.books import open_store

JOB = "0123"
EVIDENCE = {"margin": 0.01, "measures": {"self": {"worse": 3}}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> CodebookStore:
    """A store of v0 to v3 in which v1 is active."""
    store = open_store(root, versions=3)
    store.activate("v1", by="a")
    return store


def shadow(store: CodebookStore, version: str = "v2") -> ActiveRecord:
    return store.begin_shadow(version, 0.5, JOB, by="a")[1]


def canary(store: CodebookStore, version: str = "v2") -> ActiveRecord:
    return store.begin_canary(version, by="a")[1]


def test_a_shadow_begins_and_ends_with_what_decided_it(store: CodebookStore, root: Path) -> None:
    record = shadow(store)
    assert (record.move, record.version, record.traffic) == ("shadow", "v1", {})
    assert record.shadow == {"version": "v2", "share": 0.5, "job": JOB}
    assert decode(ActiveRecord, encode(record)) == record
    old, new = store.end_shadow("another", by="b")
    assert old == new == record
    ended = store.end_shadow(JOB, by="b", reason="worse", evidence=EVIDENCE)[1]
    assert (ended.move, ended.shadow, ended.reason, ended.evidence) == ("shadow", {}, "worse", EVIDENCE)
    assert store.end_shadow(JOB, by="b")[0] == ended
    store.activate("v2", by="a")
    own = {"version", "epoch", "previous", "moved_at", "moved_by", "move"}
    assert json.loads((root / "ACTIVE").read_text()).keys() == own  # older releases read it
    assert store.audit()[-2]["evidence"] == EVIDENCE


def test_a_canary_grows_in_steps_to_the_active_version(store: CodebookStore) -> None:
    record = canary(store)
    split = record.split
    for share in (0.01, 0.1, 0.5):
        assert (record.canary, record.version) == ("v2", "v1")
        assert record.traffic == pytest.approx({"v1": 1 - share, "v2": share}) and record.split == split
        before = record.epoch
        record = store.step_canary(by="steps", expected_epoch=before, reason="as safe")[1]
        with pytest.raises(Conflict):  # another server was as fast
            store.step_canary(by="steps", expected_epoch=before)
    assert (record.version, record.traffic, record.canary, record.move) == ("v2", {}, "", "activate")
    assert record.reason == "as safe"
    with pytest.raises(Conflict, match="in steps"):
        store.step_canary(by="steps", expected_epoch=record.epoch)
    assert store.rollback(by="a")[1].version == "v1"


MOVES: list[Callable[[CodebookStore], Moved]] = [
    lambda store: store.activate("v1", by="a"),
    lambda store: store.activate("v3", by="a"),
    lambda store: store.rollback(by="a"),
    lambda store: store.share({"v1": 1.0}, by="a"),
    lambda store: store.share({"v1": 0.5, "v2": 0.5}, by="a"),
    lambda store: store.revoke("v2", by="a"),
    lambda store: store.revoke("v1", by="a"),
]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("begin", [shadow, canary])
def test_a_person_ends_either(
    store: CodebookStore, begin: Callable[[CodebookStore], ActiveRecord], move: Callable[[CodebookStore], Moved]
) -> None:
    begin(store)
    record = move(store)[1]
    assert (record.shadow, record.canary) == ({}, "")


@pytest.mark.parametrize("begin", [shadow, canary])
def test_what_concerns_another_version_ends_neither(
    store: CodebookStore, begin: Callable[[CodebookStore], ActiveRecord]
) -> None:
    record = begin(store)
    for moved in (store.revoke("v3", by="a")[1], store.restore("v3", by="a")[1]):
        assert (moved.shadow, moved.canary, moved.traffic) == (record.shadow, record.canary, record.traffic)


@pytest.mark.parametrize("begin", [shadow, canary])
def test_trials_that_cannot_begin_are_refused(
    store: CodebookStore, begin: Callable[[CodebookStore, str], ActiveRecord]
) -> None:
    store.revoke("v3", by="a")
    for version, kind, words in (("v1", Conflict, "active"), ("v3", Conflict, "revoked"), ("v9", NotFound, "v9")):
        with pytest.raises(kind, match=words):
            begin(store, version)
    store.share({"v1": 0.5, "v2": 0.5}, by="a")
    with pytest.raises(Conflict, match="v2 shares the traffic"):
        begin(store, "v2")
    store.share({"v1": 1.0}, by="a")
    shadow(store)
    with pytest.raises(Conflict, match="v2 is being compared"):
        begin(store, "v0")


def test_the_canary_follows_its_own_comparison(store: CodebookStore) -> None:
    shadow(store)
    record = store.begin_canary("v2", by="job", job=JOB, evidence=EVIDENCE)[1]
    assert (record.canary, record.shadow, record.evidence) == ("v2", {}, EVIDENCE)


def test_the_steps() -> None:
    assert [images_until(share) for share, _ in STEPS] == [100, 400, 1400]
    assert [share_after(share) for share, _ in STEPS] == [0.1, 0.5, 1.0]
