"""The identity of a version: numbers are never given twice, content is known by its hash, and restores take effect."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch

from codebook.live import LiveCodebooks
from codebook.store import CodebookStore, codebook_hash
from codebook.value import Codebook
from core.errors import BadCodebook, Conflict
from records.journal import Journal
from tests.support.books import FACTS, base_book, open_store, pixel_draft
from tests.support.books import publish as publish_book
from tests.support.scripted import ScriptedLoop, StillModel
from tests.support.serving import Server, base_of, publish, serving, settings_in, texts, wait_for
from tests.support.tiny import build_tiny
from worker.attempt import run


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(settings_in(tmp_path / "home", model)) as server:
        yield server


def store_of(server: Server) -> Path:
    return server.service.settings.store


def put_in_place_of(store: Path, copy: Path) -> None:
    """Replace a store by a copy, as somebody who restores a backup does."""
    shutil.rmtree(store)
    shutil.copytree(copy, store)


def ready(server: Server) -> dict[str, object]:
    body: dict[str, object] = server.http.get("/health/ready").json()
    return body


def assert_draws(server: Server, version: str, png: bytes | None = None) -> None:
    """The next image is of `version`, by its name and by its content."""
    answer = server.http.post("/generate", json={"prompt": "a red apple", "seed": 7}, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Codebook-Version"] == version
    assert answer.headers["X-Codebook-Hash"] == server.service.store.manifest(version).content_hash
    assert png is None or answer.content == png


# Numbers


@pytest.mark.fault("F03")
def test_a_deleted_version_is_never_drawn_under_a_new_name(server: Server) -> None:
    deleted = server.publish(1)
    server.post(f"/codebooks/{deleted}/activate", {})
    before = server.png()
    server.post("/codebooks/rollback", {})
    shutil.rmtree(store_of(server) / "versions" / deleted)
    version = server.publish(2)
    assert version != deleted
    assert server.post(f"/codebooks/{version}/activate", {}).status_code == 200
    assert_draws(server, version)
    assert server.png() != before
    assert server.draw(codebook=deleted).status_code == 422


@pytest.mark.fault("F03")
def test_a_jobs_new_version_is_activated_after_a_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path))
    settings = settings_in(tmp_path, tmp_path)
    journal, store = Journal(tmp_path / "jobs"), CodebookStore(settings.store)
    (tmp_path / "pass-1").touch()
    versions = []
    for seed in (1, 2):
        job = journal.create("improve", {"max_rounds": 1, "seed": seed, "activate": True}).id
        run(job, settings, lambda settings: StillModel(), ScriptedLoop())
        versions.append((journal.get(job).result or {})["version"])
        assert store.active().version == versions[-1]
        store.rollback(by="operator")
        shutil.rmtree(settings.store / "versions" / versions[-1])
    assert versions == ["v1", "v2"]


@pytest.mark.fault("F03")
@pytest.mark.parametrize("was_active", [False, True])
@pytest.mark.parametrize("written_by", ["this code", "code that noted no number"])
def test_a_number_is_given_once(tmp_path: Path, was_active: bool, written_by: str) -> None:
    store = open_store(tmp_path / "store", versions=2)
    if was_active:
        store.activate("v2", by="me")
        store.rollback(by="me")
    if written_by != "this code":
        (tmp_path / "store" / "numbers.json").unlink(missing_ok=True)
        open_store(tmp_path / "store")  # a start notes what is there
    shutil.rmtree(tmp_path / "store" / "versions" / "v2")
    assert publish_book(CodebookStore(tmp_path / "store"), pixel_draft(3), round=3).version == "v3"
    shutil.rmtree(tmp_path / "store" / "versions" / "v3")
    assert publish_book(CodebookStore(tmp_path / "store"), pixel_draft(4), round=4).version == "v4"


@pytest.mark.fault("F03")
def test_a_number_that_only_the_log_names_is_not_given_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", versions=3)
    for version in ("v3", "v1"):
        store.activate(version, by="me")
    (tmp_path / "store" / "numbers.json").unlink(missing_ok=True)
    for version in ("v2", "v3"):
        shutil.rmtree(tmp_path / "store" / "versions" / version)
    assert publish_book(open_store(tmp_path / "store"), pixel_draft(4), round=4).version == "v4"


def test_a_crash_before_a_version_is_revealed_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for left in (".v1.tmp", ".v7.tmp"):
        (tmp_path / "store" / "versions" / left).mkdir()
    publish_book(store, pixel_draft(1))
    assert sorted(path.name for path in (tmp_path / "store" / "versions").iterdir()) == ["v0", "v1"]


# Content


def test_a_hash_follows_the_content_and_not_the_name() -> None:
    one = pixel_draft(1)
    assert codebook_hash(one) == codebook_hash(one) == codebook_hash(replace(one, version="v9"))
    assert codebook_hash(replace(one, pixel=one.pixel + 1)) != codebook_hash(one)


@pytest.mark.fault("F03")
def test_one_name_with_two_contents_is_two_codebooks(tmp_path: Path) -> None:
    """A number that comes back with other content, as by a restored copy, is not what is resident."""
    root, other = tmp_path / "store", tmp_path / "other"
    store = open_store(root, versions=1)
    publish_book(open_store(other), pixel_draft(9))
    live = LiveCodebooks(store)
    live.refresh()
    with live.lease("v1") as before:
        put_in_place_of(root / "versions" / "v1", other / "versions" / "v1")
        with live.lease("v1") as after:
            assert torch.equal(before.pixel, pixel_draft(1).pixel)
            assert torch.equal(after.pixel, pixel_draft(9).pixel)
            assert codebook_hash(before) != codebook_hash(after) == store.manifest("v1").content_hash
    store.activate("v1", by="me")
    assert live.refresh()
    with live.lease() as active:
        assert torch.equal(active.pixel, pixel_draft(9).pixel)


@pytest.mark.fault("F03")
def test_a_folder_edited_in_place_is_never_drawn_under_its_hash(server: Server) -> None:
    version = server.publish(1)
    server.post(f"/codebooks/{version}/activate", {})
    before, hash = server.png(), server.service.store.manifest(version).content_hash
    path = store_of(server) / "versions" / version / "codebook.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    answer = server.draw()
    assert (answer.headers["X-Codebook-Hash"], answer.json()["codebook_hash"]) == (hash, hash)
    assert server.png() == before  # what is resident draws on
    server.post("/codebooks/rollback", {})
    refused = server.post(f"/codebooks/{version}/activate", {})
    assert (refused.status_code, refused.json()["check"]) == (409, "sha256")
    assert_draws(server, "v0")


@pytest.mark.fault("F03")
def test_a_version_deleted_under_lease_is_drawn_to_its_end(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", versions=1)
    store.activate("v1", by="me")
    live = LiveCodebooks(store)
    live.refresh()
    with live.lease() as leased:
        shutil.rmtree(tmp_path / "store" / "versions" / "v1")
        with live.lease() as again:  # the active one draws on
            assert leased is again
    assert (live.active.version, live.refresh()) == ("v1", False)


@pytest.mark.fault("F03")
def test_the_hash_is_shown_wherever_the_version_is(server: Server) -> None:
    version = server.publish(1)
    server.post(f"/codebooks/{version}/activate", {})
    hash = server.service.store.manifest(version).content_hash
    drawn = server.draw(n=2)
    assert drawn.headers["X-Codebook-Hash"] == drawn.json()["codebook_hash"] == hash
    assert [image["codebook_hash"] for image in drawn.json()["images"]] == [hash, hash]
    assert texts(server.png())["codebook_hash"] == hash
    assert texts(server.png(codebook="v0"))["codebook_hash"] == codebook_hash(base_of(server))
    assert server.http.get("/codebooks/active").json()["codebook_hash"] == hash
    assert server.http.get("/codebooks").json()["active"]["codebook_hash"] == hash
    assert ready(server)["codebook_hash"] == hash


@pytest.mark.fault("F03")
def test_an_image_id_is_of_the_content(model: Path, tmp_path: Path) -> None:
    ids = []
    for seed in (1, 2):
        with serving(settings_in(tmp_path / str(seed), model)) as server:
            version = server.publish(seed)
            ids.append(server.draw(codebook=version).json()["images"][0]["id"])
    assert len(set(ids)) == 2


# Restoring


def older_copy_restored(server: Server, aside: Path) -> bytes:
    """Put a copy of the store with v0 and v1, v0 active, back under a server that draws under v2; gives v0's image."""
    first = server.publish(1)
    before = server.png()
    shutil.copytree(store_of(server), aside)
    second = server.publish(2)
    for version in (first, second):
        server.post(f"/codebooks/{version}/activate", {})
    assert_draws(server, second)
    put_in_place_of(store_of(server), aside)
    return before


def moved(answer: httpx2.Response) -> tuple[str, int]:
    assert answer.status_code == 200, answer.text
    return answer.json()["new"]["version"], answer.json()["new"]["epoch"]


@pytest.mark.fault("F02")
def test_a_rollback_after_a_restore_takes_effect(server: Server, tmp_path: Path) -> None:
    before = older_copy_restored(server, tmp_path / "copy")
    assert moved(server.post("/codebooks/rollback", {"to": "v0"})) == ("v0", 3)
    assert_draws(server, "v0", before)
    assert (ready(server)["codebook"], ready(server)["refused"]) == ("v0", None)
    assert [move["epoch"] for move in server.service.store.audit()] == [0, 3]


@pytest.mark.fault("F02")
def test_an_activation_after_a_restore_takes_effect(server: Server, tmp_path: Path) -> None:
    older_copy_restored(server, tmp_path / "copy")
    assert moved(server.post("/codebooks/v1/activate", {})) == ("v1", 3)
    assert_draws(server, "v1")
    assert moved(server.post("/codebooks/rollback", {})) == ("v0", 4)
    assert_draws(server, "v0")


@pytest.mark.fault("F02")
def test_a_restore_alone_moves_nothing_and_is_reported(server: Server, tmp_path: Path) -> None:
    older_copy_restored(server, tmp_path / "copy")
    wait_for("health reports it", lambda: "went back" in str(ready(server)["refused"]))
    assert (ready(server)["codebook"], ready(server)["epoch"]) == ("v2", 2)
    assert server.draw().headers["X-Codebook-Version"] == "v2"


@pytest.mark.fault("F02")
def test_a_newer_copy_is_followed(server: Server, tmp_path: Path) -> None:
    server.publish(1)
    shutil.copytree(store_of(server), tmp_path / "copy")
    newer = CodebookStore(tmp_path / "copy")
    for version in ("v1", publish(newer, 2).version):
        newer.activate(version, by="elsewhere")
    put_in_place_of(store_of(server), tmp_path / "copy")
    wait_for("the server follows", lambda: ready(server)["codebook"] == "v2")
    assert_draws(server, "v2")


@pytest.mark.fault("F02")
def test_another_branch_of_the_same_epoch_is_moved_to(server: Server, tmp_path: Path) -> None:
    """Both copies have a v1, active at epoch 1; what is resident is the other one's."""
    shutil.copytree(store_of(server), tmp_path / "copy")
    other = CodebookStore(tmp_path / "copy")
    publish(other, 9)
    other.activate("v1", by="elsewhere")
    server.publish(1)
    server.post("/codebooks/v1/activate", {})
    assert_draws(server, "v1")
    before = server.png()
    put_in_place_of(store_of(server), tmp_path / "copy")
    assert moved(server.post("/codebooks/v1/activate", {})) == ("v1", 2)
    assert_draws(server, "v1")
    assert server.png() != before


@pytest.mark.fault("F02")
def test_another_models_store_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path / "elsewhere", build_tiny(tmp_path / "other", seed=1))) as other:
        other.publish(1)
        for version in ("v1", "v0", "v1"):
            assert other.post(f"/codebooks/{version}/activate", {}).status_code == 200
        foreign = store_of(other)
    before = server.png()
    put_in_place_of(store_of(server), foreign)
    for path, body in (("/codebooks/v1/activate", {}), ("/codebooks/rollback", {"to": "v0"})):
        answer = server.post(path, body)
        assert (answer.status_code, answer.json()["check"]) == (409, "model_hash"), answer.text
    wait_for("health reports it", lambda: "model_hash" in str(ready(server)["refused"]))
    assert server.png() == before


@pytest.mark.fault("F02")
def test_a_move_that_this_server_cannot_follow_is_a_conflict(tmp_path: Path) -> None:
    live = LiveCodebooks(open_store(tmp_path / "store", versions=3), slots=2)
    live.refresh()
    with ExitStack() as leases:
        leases.enter_context(live.lease("v1"))
        with pytest.raises(Conflict, match=r"moved to v3, .*stays with v0 .*slots"):
            live.activate("v3", by="me")
    assert live.refresh() and live.active.version == "v3"


def test_a_store_refuses_a_model_that_it_was_not_opened_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    other: Codebook = replace(base_book(), model_hash="b" * 64)
    CodebookStore(tmp_path / "other").initialise(other, FACTS)
    put_in_place_of(tmp_path / "store", tmp_path / "other")
    with pytest.raises(BadCodebook) as refused:
        store.load("v0")
    assert refused.value.check == "model_hash"


def test_a_server_that_cannot_follow_its_store_draws_nothing_beyond_the_limit(model: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "home", model, SAFECB_STALE_LIMIT="1", SAFECB_STORE=str(tmp_path / "store"))
    with serving(settings) as server:
        assert server.draw().status_code == 200
        (tmp_path / "store").rename(tmp_path / "away")
        wait_for("the server refuses", lambda: server.http.get("/health/ready").status_code == 503)
        reason = server.http.get("/health/ready").json()["reason"]
        assert "the store was last followed" in reason and "1 are allowed" in reason
        refused = server.draw()
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert "safecb_codebook_stale_seconds" in server.http.get("/metrics").text
        (tmp_path / "away").rename(tmp_path / "store")
        wait_for("it draws again", lambda: server.draw().status_code == 200)
        assert server.http.get("/health/ready").json()["stale_s"] < 1
