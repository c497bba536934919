"""Attacks on everything that writes, through real disks: at every amount of room, and where nothing may be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis
from rq import Queue

from cli import evaluate as evaluate_command
from codebook.places.file_pointer import SPARES
from codebook.store import CodebookStore
from core.database import Database
from core.errors import NoAccess, NoRoom
from core.settings import Settings
from core.storage import naming
from core.wire import QUEUE
from records.flags import Flags
from records.image_log import KeptImage
from records.journal import Journal
from safety.evaluate import evaluation
from safety.loop import RoundResult
from safety.runtime.result_cache import ResultCache
from tests.safety.test_loop import PLAN
from tests.support.books import open_store, pixel_draft, publish
from tests.support.disks import BLOCK, SmallDisk, small_disk
from tests.support.redis_home import embedded_redis
from tests.support.scripted import ScriptedJob, ScriptedLoop, StillModel
from tests.support.toy_model import ToyModel
from worker.attempt import run
from worker.recovery import recover

ROOT = Path(__file__).parents[2]
IMAGE = KeptImage("1", "a knife", "v0", 1, True, "weapons", torch.arange(2048))
pytestmark = pytest.mark.fault("F06")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", request.param) as disk:
        yield disk


def until_it_fits(disk: SmallDisk, write: Callable[[], object], check: Callable[[], object]) -> None:
    """Try `write` with no room and with ever more; wherever it fails for room, `check` what is there."""
    failures = 0
    for blocks in range(64):
        disk.fill(leaving=blocks * BLOCK)
        try:
            write()
        except NoRoom as error:
            failures += 1
            assert str(disk.folder) not in str(error)
            check()
        else:
            assert failures
            return
    pytest.fail("it never fits")


def test_a_publish_that_does_not_fit_leaves_nothing_and_the_next_one_works(disk: SmallDisk) -> None:
    store = open_store(disk.folder / "store", versions=1)
    draft = pixel_draft(5)

    def check() -> None:
        assert store.names() == ["v0", "v1"] == sorted(path.name for path in (disk.folder / "store/versions").iterdir())
        store.load("v1")
        assert [record["epoch"] for record in store.audit()] == [0]

    until_it_fits(disk, lambda: publish(store, draft, images={"a.png": b"0" * 30_000}), check)
    disk.free()
    assert torch.equal(store.load("v2").pixel, draft.pixel)
    assert publish(store, draft).version == "v2"


def test_a_first_start_that_does_not_fit_is_made_up_for(disk: SmallDisk) -> None:
    root = disk.folder / "store"
    until_it_fits(disk, lambda: open_store(root), lambda: None)
    assert CodebookStore(root).active().version == "v0"


def test_a_job_and_its_events_are_whole_at_any_room(disk: SmallDisk) -> None:
    journal = Journal(disk.folder / "jobs")
    first = journal.create("evaluate", {})
    journal.append_event(first.id, {"n": 0})
    until_it_fits(disk, lambda: journal.create("improve", {"x": "y" * 9000}), lambda: journal.list() == [first])
    job = journal.list()[0].id

    def check() -> None:
        assert journal.get(job).status == "queued"
        assert [event["n"] for event in journal.events(first.id, 0)][:1] == [0]

    until_it_fits(disk, lambda: journal.append_event(first.id, {"n": "z" * 9000}), check)
    until_it_fits(disk, lambda: journal.update(job, progress={"message": "y" * 9000}), check)
    assert [event["id"] for event in journal.events(first.id, 0)] == [1, 2]
    disk.free()
    assert journal.begin_attempt(job) == 1


def test_moves_need_no_room_and_never_lose_more_than_one_line(disk: SmallDisk) -> None:
    store = open_store(disk.folder / "store", versions=1)
    moves = 0
    disk.fill()
    with pytest.raises(NoRoom, match=r"audit\.jsonl"):
        for moves in range(1000):
            store.activate("v1", by="me") if moves % 2 == 0 else store.rollback(by="me")
            disk.fill()
    assert moves > 40
    assert store.active().epoch == moves
    disk.free()
    store.rollback(by="me", to="v0" if store.active().version == "v1" else "v1")
    assert [record["epoch"] for record in store.audit()] == list(range(moves + 2))


def test_moves_go_on_for_a_while_where_another_writer_takes_all_that_they_give_back(disk: SmallDisk) -> None:
    store, ended = open_store(disk.folder / "store", versions=1), threading.Event()

    def take() -> None:
        while not ended.is_set():
            disk.fill()

    disk.fill()
    taker = threading.Thread(target=take)
    taker.start()
    try:
        for move in range(SPARES + 1):
            store.activate("v1", by="me") if move % 2 == 0 else store.rollback(by="me")
    finally:
        ended.set()
        taker.join()
    assert store.active().epoch == SPARES + 1


def test_moves_and_probes_of_the_disk_leave_each_other_room(disk: SmallDisk) -> None:
    store, ended = open_store(disk.folder / "store", versions=1), threading.Event()

    def probe() -> None:
        while not ended.is_set():
            with suppress(NoRoom):
                store.check_writable()

    disk.fill()
    prober = threading.Thread(target=probe)
    prober.start()
    try:
        for _ in range(20):
            store.activate("v1", by="me")
            store.rollback(by="me")
    finally:
        ended.set()
        prober.join()
    assert store.active().epoch == 40


def test_room_for_moves_is_held_again_once_there_is_some(disk: SmallDisk) -> None:
    store = open_store(disk.folder / "store", versions=1)
    for held in (disk.folder / "store").glob(".ACTIVE.*"):
        held.unlink()  # a store that was copied from elsewhere holds no room
    disk.fill()
    with pytest.raises(NoRoom, match="ACTIVE"):
        store.activate("v1", by="me")
    disk.free()
    store.check_writable()
    disk.fill()
    store.activate("v1", by="me")
    with pytest.raises(NoRoom):
        store.check_writable()


def test_readers_meet_a_whole_record_while_moves_use_held_room(tmp_path: Path) -> None:
    store, ended = open_store(tmp_path / "store", versions=1), threading.Event()

    def move() -> None:
        for _ in range(100):
            store.activate("v1", by="me")
            store.rollback(by="me")
        ended.set()

    mover = threading.Thread(target=move)
    mover.start()
    epochs = [store.active().epoch]
    while not ended.is_set():
        epochs.append(store.active().epoch)
    mover.join()
    assert epochs == sorted(epochs) and store.active().epoch == 200


def test_rows_that_do_not_fit_are_refused_and_the_same_object_goes_on(disk: SmallDisk) -> None:
    fresh = Database(disk.folder / "rows.db", "CREATE TABLE IF NOT EXISTS rows (value INTEGER);")

    def make() -> None:
        with fresh.changing() as db:
            db.execute("INSERT INTO rows VALUES (1)")

    until_it_fits(disk, make, lambda: None)
    disk.free()
    flags = Flags(disk.folder / "flags.db", hours=1)
    flags.add(IMAGE, None, "", "somebody", review=False)
    disk.fill()
    with pytest.raises(NoRoom, match=r"flags\.db"):
        for number in range(100):
            flags.add(KeptImage(f"x{number}", f"word {number}", *_rest(IMAGE)), None, "", f"c{number}", review=False)
    held = len(flags.list())
    disk.free()
    flags.add(KeptImage("y", "another", *_rest(IMAGE)), None, "", "other", review=False)
    assert len(flags.list()) == held + 1


def _rest(image: KeptImage) -> tuple[str, int, bool | None, str | None, torch.Tensor]:
    return image.version, image.seed, image.unsafe, image.category, image.tokens


DENIED = """
import sys
from pathlib import Path
from core.errors import NoAccess
from records.flags import Flags
from records.journal import Journal
from tests.support.books import open_store, pixel_draft, publish
from tests.core.test_storage import IMAGE
home = Path(sys.argv[1])
store = open_store(home / "store")  # it is there, and can be read
calls = {
    "move": lambda: store.activate("v1", by="me"),
    "publish": lambda: publish(store, pixel_draft(9), job="k"),
    "job": lambda: Journal(home / "jobs").create("evaluate", {}),
    "flag": lambda: Flags(home / "flags.db", 1).add(IMAGE, None, "", "me", review=False),
}
for name, call in calls.items():
    try:
        call()
    except NoAccess as error:
        print(name, error.state)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="folders of another mode are made by root, without its right to pass them")
def test_what_is_not_ours_to_write_is_said(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", versions=1)
    Journal(tmp_path / "jobs").create("evaluate", {})
    Flags(tmp_path / "flags.db", 1).add(IMAGE, None, "", "me", review=False)
    closed = [tmp_path, *tmp_path.rglob("*")]
    modes = {path: path.stat().st_mode for path in closed}
    try:
        for path in reversed(closed):
            path.chmod(0o500 if path.is_dir() else 0o400)
        as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        command = [*as_anybody, sys.executable, "-c", DENIED, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    said = [f"{name} not permitted" for name in ("move", "publish", "job", "flag")]
    assert done.stdout.splitlines() == said, done.stderr
    assert store.activate("v1", by="me")[1].version == "v1"


def test_a_used_up_quota_and_a_failing_disk_are_named() -> None:
    """No kernel here has quotas, and no disk fails: what the system would say."""
    for number, kind, state in ((errno.EDQUOT, NoRoom, "quota used up"), (errno.EIO, NoAccess, "failing")):
        with pytest.raises(kind) as raised, naming(Path("/secret/record.json")):
            raise OSError(number, os.strerror(number))
        assert raised.value.state == state and "secret" not in str(raised.value)
    with pytest.raises(FileNotFoundError), naming(Path("/x")):
        raise FileNotFoundError(errno.ENOENT, "none")


def test_a_job_waits_for_room_and_goes_on(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = disk.folder / "home"
    monkeypatch.setenv("SAFECB_HOME", str(home))
    settings = Settings.from_environ({"SAFECB_HOME": str(home)})
    journal = Journal(home / "jobs")
    job = journal.create("improve", {"max_rounds": 1, "seed": 1, "activate": True}).id
    with embedded_redis(tmp_path / "redis") as redis, ScriptedQueue(redis.url) as queue:
        disk.fill()
        run(job, settings, lambda settings: StillModel(), ScriptedLoop())
        assert journal.get(job).attempt == 0
        recover(journal, queue, ScriptedJob.functions)
        assert queue.get_job_ids() == []
        lines = [record.getMessage() for record in caplog.records if "record.json" in record.getMessage()]
        assert len(lines) == 2 and all("its disk is full" in line for line in lines)
        disk.free()
        recover(journal, queue, ScriptedJob.functions)
        assert queue.get_job_ids() == [job]
    (home / "pass-1").touch()
    run(job, settings, lambda settings: StillModel(), ScriptedLoop())
    assert journal.get(job).status == "finished"


class ScriptedQueue:
    """The queue of the scripted job in the Redis at `url`, closed with the block."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)

    def __enter__(self) -> Queue:
        return Queue(QUEUE, connection=self._redis, job_class=ScriptedJob, serializer="json")

    def __exit__(self, *raised: object) -> None:
        self._redis.close()


class Filling(ScriptedLoop):
    """A loop during which the disk gets full, but for the room that a record takes."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk

    def rounds(self, *arguments: Any) -> Iterator[RoundResult]:  # noqa: ANN401
        work: Path = arguments[3]
        self._disk.fill(leaving=8 * BLOCK)
        ResultCache(work).tensors("batch", lambda: {"images": torch.zeros(1 << 18)})
        yield from super().rounds(*arguments)


def test_work_that_does_not_fit_fails_the_job_by_name(disk: SmallDisk) -> None:
    home = disk.folder / "home"
    journal = Journal(home / "jobs")
    job = journal.create("improve", {"max_rounds": 1, "seed": 1}).id
    run(job, Settings.from_environ({"SAFECB_HOME": str(home)}), lambda settings: StillModel(), Filling(disk))
    record = journal.get(job)
    assert record.status == "failed"
    assert record.error == "NoRoom: batch.safetensors cannot be used: its disk is full; free some room"
    assert list(journal.path(job).glob("**/*.tmp")) == []


def test_an_evaluation_says_that_its_disk_is_full_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        check_evaluation(disk, tmp_path, monkeypatch, capsys)


def check_evaluation(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate_command, "open_model", lambda *_: ToyModel())
    monkeypatch.setattr(evaluation, "LoopConfig", lambda: PLAN)
    prompts, out = tmp_path / "some.txt", disk.folder / "out"
    prompts.write_text("a cat\n")
    command = ["--prompts", str(prompts), "--out", str(out), "--versions", "v0"]
    disk.fill()
    assert evaluate_command.main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("safecb evaluate: ") and str(out) in said and "its disk is full" in said
    assert not (out / "evaluation.json").exists()
    disk.free()
    assert evaluate_command.main(command) == 0
    assert (out / "evaluation.json").exists()
