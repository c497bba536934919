"""A home folder of version 0.1.0 before its types were renamed: today's code reads, activates and rolls back.

tests/data/store-0.1 was written by commit 68ef754: v0, v1 with a head edit of every field, an ended job, a flag and
the image it is about.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codebook.live import LiveCodebooks
from codebook.store import CodebookStore
from codebook.tensors import pack
from records.flags import Flags
from records.image_log import ImageMemory, Verdicts
from records.journal import Journal
from tests.support.books import FACTS, base_book, pixel_draft, publish

JOB, IMAGE = "18ec51960ff6688c88eb14eb", "0123456789abcdef01234567"
FOR_EVER_H = 24 * 365 * 1000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "data" / "store-0.1", tmp_path / "home"))


def test_its_versions_are_listed_and_load_exactly(home: Path) -> None:
    store = CodebookStore(home / "store")
    store.initialise(base_book(), FACTS)
    assert [(m.version, m.tables, m.parent, m.job) for m in store.versions()] == [
        ("v0", [], None, None),
        ("v1", ["output"], "v0", JOB),
    ]
    written = load_file(home / "store/versions/v1/codebook.safetensors")
    read = pack(store.load("v1"))
    assert read.keys() == written.keys() and len(read) == 14
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
    assert (store.report("v1"), store.images("v1")) == ({"note": "made by 0.1.0"}, ["before_after.png"])


def test_it_is_served_rolled_back_activated_and_published_to(home: Path) -> None:
    store = CodebookStore(home / "store")
    store.initialise(base_book(), FACTS)
    live = LiveCodebooks(store)
    live.start()
    assert (live.active.version, live.active.epoch, live.last_error) == ("v1", 1, None)
    assert live.rollback(by="operator")[1].version == "v0"
    assert live.activate("v1", by="operator")[1].epoch == 3
    assert publish(store, pixel_draft(2), parent="v1").version == "v2"
    assert [move["version"] for move in store.audit()] == ["v0", "v1", "v0", "v1"]


def test_its_journal_is_read_and_takes_jobs(home: Path) -> None:
    journal = Journal(home / "jobs")
    job = journal.get(JOB)
    assert (job.status, job.attempt, job.result) == (
        "finished",
        1,
        {"version": "v1", "start": "v0", "reason": "accepted"},
    )
    assert [event["event"] for event in journal.events(JOB, 0)] == ["progress", "round"]
    fresh = journal.create("improve", {})
    assert journal.list() == [fresh, job]


def test_its_flags_and_images_are_read(home: Path) -> None:
    (flag,) = Flags(home / "flags.db", FOR_EVER_H).list()
    assert (flag.image_id, flag.state, flag.category, flag.note) == (IMAGE, "accepted", "gore", "blood")
    image = ImageMemory(home / "images.db", 10, FOR_EVER_H).get(IMAGE)
    assert (image.prompt, image.unsafe) == ("a red apple", True)
    assert torch.equal(image.tokens, flag.tokens) and torch.equal(image.tokens, torch.arange(16))


def test_its_images_may_have_no_verdict_from_now_on(home: Path) -> None:
    memories = [ImageMemory(home / "images.db", 10, FOR_EVER_H) for _ in range(2)]  # as of two processes
    old = memories[0].get(IMAGE)
    memories[0].keep([replace(old, id="unjudged", unsafe=None, category=None)])
    new = memories[1].get("unjudged")
    assert (new.prompt, new.unsafe, new.category) == (old.prompt, None, None)
    again = memories[1].get(IMAGE)
    assert torch.equal(again.tokens, old.tokens) and replace(again, tokens=old.tokens).__dict__ == old.__dict__
    assert memories[1].verdicts(old.version) == Verdicts(0, [True], 1)
