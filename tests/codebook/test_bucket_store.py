"""A store in a bucket: machines with homes of their own see one truth, whatever they do simultaneously."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.main import main
from codebook.identity import FORMAT
from codebook.places import bucket_place
from codebook.places.bucket_place import BucketPlace
from codebook.signature import UNSIGNED, Signatures
from codebook.store import CodebookStore, codebook_hash
from core.bucket.bucket import AWAY_S, Bucket
from core.errors import BadCodebook, Conflict, NoBucket, NotFound
from core.wire import HOPELESS
from tests.support.books import FACTS, base_book, open_store, output_draft, pixel_draft, publish, publish_active
from tests.support.servers.s3 import S3, Line
from worker.main import main as worker

Machine = Callable[..., CodebookStore]


@pytest.fixture
def url(s3: S3, line: Line) -> str:
    return s3.bucket()


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Machine:
    """Makes the store of another machine, with copies of its own, on the one bucket."""
    numbers = count()

    def make(signatures: Signatures = UNSIGNED, patience: float = 0.0) -> CodebookStore:
        place = BucketPlace(Bucket(url, patience), tmp_path / f"machine-{next(numbers)}")
        store = CodebookStore(place, signatures)
        store.initialise(base_book(), FACTS)
        return store

    return make


def test_what_one_machine_does_the_other_sees(machine: Machine) -> None:
    one, other = machine(), machine()
    draft = output_draft(1)
    manifest = publish_active(one, draft, report={"rounds": 1}, images={"grid.png": b"png"})
    assert other.active() == one.active() and other.active().version == manifest.version == "v1"
    assert codebook_hash(other.load("v1")) == codebook_hash(draft)
    assert other.report("v1") == {"rounds": 1}
    assert other.images("v1") == ["grid.png"] and other.image("v1", "grid.png") == b"png"
    other.rollback(by="me")
    assert one.active().version == "v0" and one.audit() == other.audit()
    with pytest.raises(NotFound):
        other.load("v2")


def test_machines_that_start_simultaneously_make_one_store(machine: Machine) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = [made.result() for made in [pool.submit(machine) for _ in range(4)]]
    assert len({str(store.audit()) for store in stores}) == 1
    assert [store.names() for store in stores] == [["v0"]] * 4


def test_simultaneous_publications_get_numbers_of_their_own(machine: Machine) -> None:
    stores = [machine() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(publish, store, pixel_draft(n), job=f"j{n}") for n, store in enumerate(stores)]
        versions = {job.result().version: n for n, job in enumerate(jobs)}
    assert len(versions) == 4 and stores[0].names() == ["v0", *sorted(versions)]
    for version, n in versions.items():
        assert codebook_hash(stores[-1].load(version)) == codebook_hash(pixel_draft(n))


def test_a_round_is_published_once_by_whoever_comes_first(machine: Machine) -> None:
    stores, draft = [machine() for _ in range(4)], pixel_draft(1)
    with ThreadPoolExecutor(4) as pool:
        manifests = [job.result() for job in [pool.submit(publish, store, draft) for store in stores]]
    assert len({str(manifest) for manifest in manifests}) == 1
    assert stores[0].names() == ["v0", manifests[0].version]
    with pytest.raises(Conflict, match="with other content"):
        publish(stores[1], pixel_draft(2))
    publish(stores[2], draft, fence=3)
    with pytest.raises(Conflict, match="attempt 2 of job j is stale"):
        publish(stores[3], draft, fence=2)


def test_a_publication_that_died_is_ended_by_the_next_attempt(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, draft = machine(), pixel_draft(1)
    create = Bucket.create

    def die(self: Bucket, key: str, data: bytes) -> bool:
        if key.endswith("index.json"):
            raise KeyboardInterrupt
        return create(self, key, data)

    monkeypatch.setattr(Bucket, "create", die)
    with pytest.raises(KeyboardInterrupt):
        publish(store, draft)
    monkeypatch.setattr(Bucket, "create", create)
    other = machine()
    assert other.names() == ["v0"]
    assert publish(other, draft, fence=2).version == "v1" and store.names() == ["v0", "v1"]


def test_moves_of_many_machines_make_one_history(machine: Machine, line: Line) -> None:
    setup = machine()
    for n in range(1, 4):
        publish(setup, pixel_draft(n), round=n)
    line.lost = 0.05
    stores = [machine(patience=60.0) for _ in range(4)]

    def move(number: int) -> list[int]:
        store, epochs = stores[number], []
        for turn in range(12):
            old, new = store.activate(f"v{(number + turn) % 4}", by=f"machine {number}")
            epochs += [new.epoch] if new != old else []
        return epochs

    with ThreadPoolExecutor(4) as pool:
        moves = list(pool.map(move, range(4)))
    line.lost = 0.0
    audit = setup.audit()
    assert [record["epoch"] for record in audit] == list(range(len(audit)))
    assert all(new["previous"] == old["version"] for old, new in pairwise(audit))
    for number, epochs in enumerate(moves):  # every move that was acknowledged is there, once
        assert [r["epoch"] for r in audit if r["moved_by"] == f"machine {number}"] == epochs


def test_an_expected_epoch_holds_between_machines(machine: Machine) -> None:
    one, other = machine(), machine()
    publish(one, pixel_draft(1))
    one.activate("v1", by="one", expected_epoch=0)
    with pytest.raises(Conflict, match="epoch 1"):
        other.activate("v1", by="other", expected_epoch=0)
    other.revoke("v1", by="other")
    with pytest.raises(Conflict, match="revoked"):
        one.activate("v1", by="one")
    assert one.active().version == "v0"


def test_while_the_bucket_is_away_copies_serve_and_nothing_moves(machine: Machine, line: Line) -> None:
    store = machine()
    publish_active(store, pixel_draft(1))
    store.load("v1")
    line.cut = True
    bucket_place.TRUSTED_S, before = 0.0, bucket_place.TRUSTED_S
    try:
        assert codebook_hash(store.load("v1")) == codebook_hash(pixel_draft(1))
    finally:
        bucket_place.TRUSTED_S = before
    for use_of in (store.active, store.names, lambda: store.rollback(by="me"), store.check_writable):
        with pytest.raises(NoBucket):
            use_of()
    line.cut = False
    time.sleep(2 * AWAY_S)
    assert store.active().version == "v1"


def test_a_damaged_copy_is_fetched_again(machine: Machine, tmp_path: Path) -> None:
    store = machine()
    publish(store, pixel_draft(1))
    store.load("v1")
    (tmp_path / "machine-0" / "v1" / "codebook.safetensors").write_bytes(b"rust")
    assert codebook_hash(store.load("v1")) == codebook_hash(pixel_draft(1))


def test_a_version_replaced_in_the_bucket_is_not_served_from_a_copy(
    machine: Machine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket restored from a backup may give a number again."""
    monkeypatch.setattr(bucket_place, "TRUSTED_S", 0.0)
    one, other = machine(), machine()
    publish(one, pixel_draft(1))
    one.load("v1")
    bucket = Bucket(url)
    for key in ("versions/v1/index.json", "published/j/1", "numbers/000000001", "fences/j/000001"):
        bucket.delete(key)
    assert publish(other, pixel_draft(2)).version == "v1"
    assert codebook_hash(one.load("v1")) == codebook_hash(pixel_draft(2))


def test_damage_in_the_bucket_is_refused(machine: Machine, url: str) -> None:
    store, other = machine(), machine()
    sha256 = publish(store, pixel_draft(1)).sha256
    Bucket(url).write(f"blobs/{sha256}", b"rust")
    with pytest.raises(BadCodebook, match="damaged there"):
        other.load("v1")


def test_a_signature_made_later_reaches_the_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_place, "TRUSTED_S", 0.0)
    publish(machine(), pixel_draft(1))
    key = Ed25519PrivateKey.from_private_bytes(os.urandom(32))
    checking = Signatures(key, (key.public_key(),))
    signer, reader = machine(checking), machine(checking)
    with pytest.raises(BadCodebook, match=r"manifest\.sig is missing"):
        reader.load("v1")
    signer.sign("v1")
    assert reader.load("v1").version == "v1"


def test_another_models_bucket_is_refused(machine: Machine, url: str, tmp_path: Path) -> None:
    machine()
    stranger = CodebookStore(BucketPlace(Bucket(url), tmp_path / "stranger"))
    with pytest.raises(BadCodebook, match="model_hash"):
        stranger.initialise(replace(base_book(), model_hash="b" * 64), FACTS)


def test_a_bucket_of_a_later_format_is_refused_by_servers_and_workers(
    machine: Machine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine()
    record = json.loads(Bucket(url).read("model.json") or b"")
    Bucket(url).write("model.json", json.dumps({**record, "format": FORMAT + 1, "more": 1}).encode())
    both = f"{url}/model.json is of format {FORMAT + 1}, and this release reads formats up to {FORMAT}"
    with pytest.raises(BadCodebook, match=both):
        machine()
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path))
    monkeypatch.setenv("SAFECB_STORE", url)
    monkeypatch.setattr(os, "nice", lambda steps: steps)
    assert worker() == HOPELESS and both in caplog.text


def test_a_mode_is_derived_once(machine: Machine) -> None:
    one, other = machine(), machine()
    version = publish(one, output_draft(1)).version
    assert one.derive(version, "rewrite").version == other.derive(version, "rewrite").version == "v2"


def test_a_folders_store_is_copied_with_its_history_and_numbers(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_store(tmp_path / "home" / "store", versions=3)
    folder.activate("v2", by="me")
    folder.activate("v1", by="me")
    shutil.rmtree(tmp_path / "home" / "store" / "versions" / "v3")
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path / "home"))
    assert main(["codebooks", "copy", url]) == 0
    assert "3 versions" in capsys.readouterr().out
    copied = CodebookStore(BucketPlace(Bucket(url), tmp_path / "copies"))
    copied.initialise(base_book(), FACTS)
    assert copied.names() == ["v0", "v1", "v2"] and copied.audit() == folder.audit()
    assert codebook_hash(copied.load("v2")) == codebook_hash(pixel_draft(2))
    copied.rollback(by="me")
    assert copied.active().version == "v2"
    assert publish(copied, pixel_draft(7), job="next").version == "v4"  # v3 was given before
    assert main(["codebooks", "copy", url]) == 1
    assert "holds a codebook store already" in capsys.readouterr().err
    assert main(["codebooks", "copy", "elsewhere"]) == 1


def test_the_doctor_races_the_bucket(
    url: str, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path))
    monkeypatch.setenv("SAFECB_STORE", url)
    main(["doctor"])
    assert "none yet; the first start makes it" in capsys.readouterr().out
    line.blind()
    main(["doctor"])
    assert "simultaneous creations" in capsys.readouterr().out
