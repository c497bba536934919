"""The live cell: the old codebook stays until the new one is proved, and no lease ever loses its codebook."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest
import torch

from codebook.live import LiveCodebooks
from codebook.store import CodebookStore
from core.errors import BadCodebook, BadInput, NotFound, Unavailable
from tests.support.books import base_book, open_store, pixel_draft


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def open_live(root: Path, versions: int, slots: int = 16) -> tuple[CodebookStore, LiveCodebooks]:
    """Return a store with `versions` edits and a live cell that has followed it once, v0 active."""
    store = open_store(root, versions)
    live = LiveCodebooks(store, slots)
    assert live.refresh()
    return store, live


def damage(root: Path, version: str) -> None:
    """Cut the tensors of a version short."""
    path = root / "versions" / version / "codebook.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_refresh_follows_the_store(root: Path) -> None:
    store, live = open_live(root, versions=2)
    with live.lease() as codebook:
        assert codebook.version == "v0"
    assert not live.refresh()
    store.activate("v2", by="me")
    with live.lease() as codebook:
        assert codebook.version == "v0"  # nothing moves between refreshes
    assert live.refresh()
    assert (live.active, live.last_error) == (store.active(), None)
    with live.lease() as codebook:
        assert torch.equal(codebook.pixel, pixel_draft(2).pixel)
    store.rollback(by="me")
    assert live.refresh()
    with live.lease() as codebook:
        assert torch.equal(codebook.pixel, base_book().pixel)


def test_a_lease_keeps_its_version_through_a_swap(root: Path) -> None:
    store, live = open_live(root, versions=1)
    with live.lease() as before:
        store.activate("v1", by="me")
        live.refresh()
        with live.lease() as after:
            assert (before.version, after.version) == ("v0", "v1")
        assert torch.equal(before.pixel, base_book().pixel)


def test_a_version_can_be_leased_by_name(root: Path) -> None:
    _, live = open_live(root, versions=2)
    with live.lease("v2") as codebook, live.lease("v2") as again:
        assert codebook is again
        assert codebook.version == "v2"
    assert live.active.version == "v0"
    for unknown in ("v3", "../v1", "", "ACTIVE"):
        with pytest.raises(NotFound), live.lease(unknown):
            pass


def test_before_a_refresh_nothing_is_served(root: Path) -> None:
    live = LiveCodebooks(open_store(root))
    assert live.resident() == []
    with pytest.raises(Unavailable):
        _ = live.active
    with pytest.raises(Unavailable), live.lease():
        pass


def test_where_the_first_version_is_bad_nothing_is_served_and_it_is_reported(root: Path) -> None:
    store = open_store(root, versions=1)
    store.activate("v1", by="me")
    damage(root, "v1")
    live = LiveCodebooks(store)
    assert not live.refresh()
    assert "sha256" in str(live.last_error)
    with pytest.raises(Unavailable), live.lease():
        pass  # the model's own codebook is not a silent stand-in for a safer one
    store.rollback(by="operator")
    assert live.refresh()
    assert live.last_error is None


def test_a_store_that_is_not_there_is_reported_and_does_not_raise(root: Path) -> None:
    live = LiveCodebooks(CodebookStore(root))
    assert not live.refresh()
    assert "not initialised" in str(live.last_error)


def test_a_bad_version_is_refused_and_the_old_one_stays(root: Path) -> None:
    store, live = open_live(root, versions=2)
    store.activate("v1", by="me")
    damage(root, "v1")
    for _ in range(2):
        assert not live.refresh()
        assert "codebook v1 refused (sha256)" in str(live.last_error)
        assert (live.active.version, live.resident()) == ("v0", ["v0"])
        with live.lease() as codebook:
            assert codebook.version == "v0"
    with pytest.raises(BadCodebook), live.lease("v1"):
        pass
    store.activate("v2", by="me")
    assert live.refresh()
    assert (live.active.version, live.last_error) == ("v2", None)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": "v1"}'])
def test_a_damaged_active_record_keeps_the_old_one(root: Path, data: bytes) -> None:
    _, live = open_live(root, versions=1)
    (root / "ACTIVE").write_bytes(data)
    assert not live.refresh()
    assert "ACTIVE" in str(live.last_error)
    assert live.active.version == "v0"


def test_a_lost_store_keeps_the_old_one(root: Path) -> None:
    _, live = open_live(root, versions=1)
    os.rename(root, root.with_name("moved"))
    assert not live.refresh()
    assert live.last_error is not None
    with live.lease() as codebook:
        assert codebook.version == "v0"


@pytest.mark.parametrize(("epoch", "version"), [(0, "v0"), (1, "v1"), (2, "v1")])
def test_refresh_never_goes_to_an_older_epoch(root: Path, epoch: int, version: str) -> None:
    store, live = open_live(root, versions=2)
    store.activate("v1", by="me")
    store.activate("v2", by="me")
    live.refresh()
    record = json.loads((root / "ACTIVE").read_bytes())
    (root / "ACTIVE").write_text(json.dumps(record | {"epoch": epoch, "version": version}))
    assert not live.refresh()
    assert "went back" in str(live.last_error)
    assert (live.active.version, live.active.epoch) == ("v2", 2)


def test_the_least_recently_leased_makes_room_and_never_the_active_one(root: Path) -> None:
    _, live = open_live(root, versions=5, slots=3)
    for version in ("v1", "v2", "v1", "v3"):
        with live.lease(version):
            pass
    assert live.resident() == ["v0", "v1", "v3"]
    for version in ("v4", "v5"):
        with live.lease(version):
            pass
    assert live.resident() == ["v0", "v4", "v5"]


def test_a_leased_version_is_never_evicted(root: Path) -> None:
    _, live = open_live(root, versions=5, slots=3)
    with live.lease("v1") as held:
        for version in ("v2", "v3", "v4", "v5"):
            with live.lease(version):
                assert "v1" in live.resident()
        assert torch.equal(held.pixel, pixel_draft(1).pixel)
    for version in ("v4", "v3"):
        with live.lease(version):
            pass
    assert "v1" not in live.resident()


def test_where_all_slots_are_leased_the_next_must_wait(root: Path) -> None:
    store, live = open_live(root, versions=3, slots=2)
    with live.lease("v1"):
        with pytest.raises(Unavailable), live.lease("v2"):
            pass
        store.activate("v3", by="me")
        assert not live.refresh()
        assert "slots" in str(live.last_error)
        assert live.active.version == "v0"
    assert live.refresh()
    assert live.active.version == "v3"


def test_a_lease_ends_when_its_block_raises(root: Path) -> None:
    _, live = open_live(root, versions=2, slots=2)
    with pytest.raises(RuntimeError, match="boom"), live.lease("v1"):
        raise RuntimeError("boom")
    with live.lease("v2"):
        assert live.resident() == ["v0", "v2"]


def test_every_lease_of_a_version_counts(root: Path) -> None:
    _, live = open_live(root, versions=2, slots=2)
    with ExitStack() as outer:
        outer.enter_context(live.lease("v1"))
        with live.lease("v1"), live.lease("v1"):
            pass
        with pytest.raises(Unavailable), live.lease("v2"):
            pass
    with live.lease("v2"):
        pass


@pytest.mark.parametrize("slots", [-1, 0, 1])
def test_one_slot_is_not_enough_to_swap(root: Path, slots: int) -> None:
    with pytest.raises(BadInput, match="slots"):
        LiveCodebooks(CodebookStore(root), slots)


def test_threads_that_want_the_same_version_get_one_load(root: Path) -> None:
    _, live = open_live(root, versions=1)
    start = Barrier(8)

    def take() -> int:
        start.wait()
        with live.lease("v1") as codebook:
            start.wait()
            return id(codebook)

    with ThreadPoolExecutor(8) as pool:
        taken = {future.result() for future in [pool.submit(take) for _ in range(8)]}
    assert len(taken) == 1


def test_leases_stay_true_while_threads_swap_and_evict(root: Path) -> None:
    store, live = open_live(root, versions=6, slots=4)
    expected = {"v0": base_book().pixel} | {f"v{n}": pixel_draft(n).pixel for n in range(1, 7)}
    done = Event()

    def swap() -> None:
        for n in range(60):
            store.activate(f"v{n % 7}", by="swapper")
            live.refresh()
        done.set()

    def use(offset: int) -> int:
        leases, epoch, n = 0, -1, offset
        while not done.is_set() or leases == 0:
            n += 1
            assert live.active.epoch >= epoch
            epoch = live.active.epoch
            try:
                with live.lease("active" if n % 2 else f"v{n % 7}") as codebook:
                    assert codebook.version in live.resident()
                    assert len(live.resident()) <= 4
                    assert torch.equal(codebook.pixel, expected[codebook.version])
                    leases += 1
            except Unavailable:
                continue
        return leases

    swapper = Thread(target=swap)
    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use, offset) for offset in range(4)]
        swapper.start()
        assert all(user.result() > 0 for user in users)
    swapper.join()
    live.refresh()
    assert (live.active, live.last_error) == (store.active(), None)
    assert_no_lease_leaked(live, sorted(expected))


def assert_no_lease_leaked(live: LiveCodebooks, versions: list[str]) -> None:
    """All four slots but the active one's can be leased, and no more."""
    others = [version for version in versions if version != live.active.version]
    with ExitStack() as leases:
        for version in others[:3]:
            leases.enter_context(live.lease(version))
        with pytest.raises(Unavailable):
            leases.enter_context(live.lease(others[3]))


def test_staleness_is_counted_from_the_last_time_the_store_was_followed(tmp_path: Path) -> None:
    now = [100.0]
    store = open_store(tmp_path / "store", versions=1)
    live = LiveCodebooks(store, stale_limit=10, clock=lambda: now[0])
    live.start()
    now[0] += 5
    assert live.stale_s == 5
    live.refresh()
    assert live.stale_s == 0
    (tmp_path / "store").rename(tmp_path / "away")
    for _ in range(3):
        now[0] += 4
        live.refresh()
    assert live.stale_s == 12 and live.last_error is not None
    with pytest.raises(Unavailable, match="12 s ago, and 10 are allowed"), live.lease():
        pass
    (tmp_path / "away").rename(tmp_path / "store")
    live.refresh()
    with live.lease() as codebook:
        assert (codebook.version, live.stale_s) == ("v0", 0)
