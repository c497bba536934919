"""Damaged files: the server starts on what is sound or ends with one line that names the file; nothing is deleted."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from codebook.live import LiveCodebooks
from codebook.store import CodebookStore
from core.errors import BadCodebook, SafeCBError, Unavailable
from core.wire import HOPELESS
from records.flags import Flags
from records.image_log import ImageMemory, KeptImage
from records.journal import Journal
from tests.support.books import open_store
from tests.support.scripted import ScriptedLoop, StillModel
from tests.support.serving import PATIENCE_S, Server, publish, serving, settings_in, wait_for
from tests.support.supervised import Supervised
from worker.attempt import run

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    """Truncate a file to its half, as a copy that was broken off."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def foreign(folder: Path) -> None:
    """Put a version of another model in place of the folder."""
    other = folder.parent.parent.parent / "other"
    open_store(other, versions=2)
    shutil.rmtree(folder)
    shutil.copytree(other / "versions" / folder.name, folder)


VERSIONS: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda folder: cut(folder / "codebook.safetensors"), "sha256"),
    "without its tensors": (lambda folder: (folder / "codebook.safetensors").unlink(), "file"),
    "half copied": (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
    "gone": (shutil.rmtree, "there is no codebook version"),
    "of another model": (foreign, "model_hash"),
}


@pytest.fixture
def home(model: Path, tmp_path: Path) -> Path:
    """A home whose server was ended with v2 active, v1 and v0 before it."""
    with serving(settings_in(tmp_path / "home", model)) as server:
        for seed in (1, 2):
            assert server.post(f"/codebooks/{server.publish(seed)}/activate", {}).status_code == 200
    return tmp_path / "home"


def active_file(home: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((home / "store" / "ACTIVE").read_bytes())
    return record


# Versions


@pytest.mark.fault("F04")
def test_a_truncated_active_version_starts_on_the_one_before(home: Path, model: Path, runs: list[Supervised]) -> None:
    cut(home / "store" / "versions" / "v2" / "codebook.safetensors")
    active = (home / "store" / "ACTIVE").read_bytes()
    run = Supervised(home, model)
    runs.append(run)
    with run.wait_ready() as http:
        body = http.get("/health/ready").json()
        assert (body["codebook"], body["status"]) == ("v1", "ready")
        assert "v2" in body["refused"] and "sha256" in body["refused"]
        wait_for("the log says so", lambda: "codebook v2 refused (sha256)" in run.output)
        assert "Traceback" not in run.output
        assert (home / "store" / "ACTIVE").read_bytes() == active
        drawn = http.post("/generate", json={"prompt": "a red apple", "seed": 7})
        assert (drawn.status_code, drawn.headers["X-Codebook-Version"]) == (200, "v1")
        again = http.post("/codebooks/v2/activate", json={})
        assert (again.status_code, again.json()["check"]) == (409, "sha256")
        back = http.post("/codebooks/rollback", json={})
        assert (back.status_code, back.json()["new"]["version"], back.json()["new"]["epoch"]) == (200, "v1", 3)
        body = http.get("/health/ready").json()
        assert (body["codebook"], body["epoch"], body["refused"]) == ("v1", 3, None)


@pytest.mark.fault("F04")
@pytest.mark.parametrize("name", VERSIONS)
def test_any_damage_of_the_active_version_is_named_and_got_round(home: Path, model: Path, name: str) -> None:
    damage, words = VERSIONS[name]
    damage(home / "store" / "versions" / "v2")
    cut(home / "store" / "versions" / "v1" / "codebook.safetensors")
    with serving(settings_in(home, model)) as server:
        body = server.http.get("/health/ready").json()
        assert body["codebook"] == "v0" and words in body["refused"] and "v2" in body["refused"]
        assert server.draw().headers["X-Codebook-Version"] == "v0"
        assert active_file(home)["version"] == "v2"
        assert server.post("/codebooks/rollback", {}).json()["version"] == "v1"  # refused by name as well
        assert server.post("/codebooks/rollback", {"to": "v0"}).status_code == 200
        assert server.http.get("/health/ready").json()["refused"] is None


@pytest.mark.fault("F04")
def test_where_no_version_loads_each_is_named_and_the_command_helps(
    home: Path, model: Path, runs: list[Supervised]
) -> None:
    for version in ("v1", "v2"):
        cut(home / "store" / "versions" / version / "codebook.safetensors")
    (home / "store" / "audit.jsonl").write_bytes(b"{\n" + (home / "store" / "audit.jsonl").read_bytes())
    run = Supervised(home, model)
    runs.append(run)
    assert run.process.wait(PATIENCE_S) == HOPELESS
    assert "codebook v2 refused (sha256)" in run.output and "line 1 of audit.jsonl" in run.output
    assert "Traceback" not in run.output
    command = next(line for line in run.output.splitlines() if "run: " in line).partition("run: ")[2]
    subprocess.run(command, shell=True, check=True)
    again = Supervised(home, model)
    runs.append(again)
    with again.wait_ready() as http:
        assert http.get("/health/ready").json()["codebook"] == "v0"
        assert http.get("/health/ready").json()["refused"] is None
    assert (home / "store" / "damaged" / "audit.jsonl").exists()


@pytest.mark.fault("F04")
def test_a_version_that_was_left_is_not_started_on(tmp_path: Path) -> None:
    """The one before is the one that a rollback goes to, and never one that was rolled back."""
    store = open_store(tmp_path / "store", versions=3)
    for version in ("v1", "v3"):
        store.activate(version, by="me")
    store.rollback(by="me")
    store.activate("v2", by="me")
    cut(tmp_path / "store" / "versions" / "v2" / "codebook.safetensors")
    live = LiveCodebooks(store)
    live.start()
    assert live.active.version == "v1" and "v2" in str(live.last_error)
    shutil.rmtree(tmp_path / "store" / "versions" / "v1")
    live = LiveCodebooks(store)
    live.start()
    assert live.active.version == "v0"


@pytest.mark.fault("F04")
def test_a_mended_version_is_followed_without_a_move(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", versions=1)
    store.activate("v1", by="me")
    path = tmp_path / "store" / "versions" / "v1" / "codebook.safetensors"
    sound = path.read_bytes()
    cut(path)
    live = LiveCodebooks(store)
    live.start()
    assert live.active.version == "v0"
    path.write_bytes(sound)
    assert live.refresh()
    assert (live.active, live.last_error) == (store.active(), None)


# Records of the store


def refusal(home: Path, model: Path) -> str:
    """Start a server that cannot; give its last words."""
    with serving(settings_in(home, model), ready=False) as server:
        wait_for("the start is refused", lambda: server.service.failure)
        return str(server.service.failure)


@pytest.mark.fault("F04")
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\x00"])
@pytest.mark.parametrize("name", ["ACTIVE", "model.json"])
def test_a_damaged_record_is_named_and_moving_it_away_helps(home: Path, model: Path, name: str, data: bytes) -> None:
    path = home / "store" / name
    path.write_bytes(data)
    body = refusal(home, model)
    assert name in body and "move" in body
    assert path.read_bytes() == data
    path.rename(home / f"{name}.damaged")
    with serving(settings_in(home, model)) as server:
        assert server.draw().headers["X-Codebook-Version"] == "v2"


@pytest.mark.fault("F04")
def test_a_damaged_v0_is_named_and_moving_it_away_helps(home: Path, model: Path) -> None:
    v0 = home / "store" / "versions" / "v0"
    cut(v0 / "codebook.safetensors")
    body = refusal(home, model)
    assert "v0 refused (sha256)" in body and str(v0) in body and "move" in body
    v0.rename(home / "damaged")
    with serving(settings_in(home, model)) as server:
        assert server.draw().headers["X-Codebook-Version"] == "v2"


@pytest.mark.fault("F04")
@pytest.mark.parametrize("name", ["ACTIVE", "audit.jsonl", "fences.json", "numbers.json"])
def test_a_missing_record_starts(home: Path, model: Path, name: str) -> None:
    (home / "store" / name).unlink(missing_ok=True)
    with serving(settings_in(home, model)) as server:
        assert server.draw().headers["X-Codebook-Version"] == "v2"
        assert server.publish(3) == "v3"


@pytest.mark.fault("F04")
@pytest.mark.parametrize("name", ["audit.jsonl", "fences.json", "numbers.json"])
@pytest.mark.parametrize("damage", ["garbage", "a folder"])
def test_a_damaged_record_costs_no_image_and_is_named(home: Path, model: Path, name: str, damage: str) -> None:
    path = home / "store" / name
    path.unlink(missing_ok=True)
    path.mkdir() if damage == "a folder" else path.write_bytes(b"\xff garbage\n")
    with serving(settings_in(home, model)) as server:
        assert server.draw().headers["X-Codebook-Version"] == "v2"
        if name == "audit.jsonl":
            answer = server.post("/codebooks/rollback", {})
            assert answer.status_code == 409 and name in answer.json()["detail"]
        else:
            with pytest.raises(BadCodebook, match=f"{name}.*move"):
                publish(server.service.store, 3)
            assert server.post("/codebooks/rollback", {}).json()["new"]["version"] == "v1"
    assert path.exists()


@pytest.mark.fault("F04")
def test_a_damaged_log_costs_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path))
    settings, journal = settings_in(tmp_path, tmp_path), Journal(tmp_path / "jobs")
    store = CodebookStore(settings.store)
    store.initialise(StillModel().base_codebook(), {})
    (settings.store / "audit.jsonl").write_bytes(b"garbage\n")
    (tmp_path / "pass-1").touch()
    job = journal.create("improve", {"max_rounds": 1, "seed": 1, "activate": True}).id
    run(job, settings, lambda settings: StillModel(), ScriptedLoop())
    record = journal.get(job)
    assert (record.status, (record.result or {})["version"]) == ("finished", "v1")
    assert store.active().version == "v0"  # nobody knows whether somebody left v1


@pytest.mark.fault("F04")
def test_a_damaged_job_record_is_named_and_hides_no_other(home: Path, model: Path) -> None:
    journal = Journal(home / "jobs")
    sound, bad = (journal.create("evaluate", {}).id for _ in range(2))
    path = home / "jobs" / bad / "record.json"
    path.write_bytes(b"\xff{")
    with serving(settings_in(home, model)) as server:
        assert [job["id"] for job in server.http.get("/jobs").json()] == [sound]
        answer = server.http.get(f"/jobs/{bad}")
        assert answer.status_code == 500 and str(path) in answer.json()["detail"]
        assert server.post("/improve", {}).status_code == 202
    assert path.read_bytes() == b"\xff{"


# SQLite files


def write_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (id INTEGER PRIMARY KEY, url TEXT)")
        db.execute("INSERT INTO bookmarks VALUES (1, 'there')")
        db.commit()


def write_another_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE images (id TEXT, url TEXT); CREATE TABLE flags (id TEXT, country TEXT);")


def cut_rows(path: Path) -> None:
    """Leave the first half of a file of ours."""
    images = [KeptImage(f"{n}", f"prompt {n}", "v0", n, False, "none", torch.zeros(300).long()) for n in range(20)]
    if path.name == "images.db":
        ImageMemory(path, 2000, 24).keep(images)
    else:
        for image in images:
            Flags(path, 24).add(image, None, "note", f"caller {image.id}", review=False)
    cut(path)


DATABASES: dict[str, Damage] = {
    "no database": lambda path: path.write_bytes(b"this is no database, " * 400),
    "a foreign database": write_foreign,
    "tables of other columns": write_another_schema,
    "cut": cut_rows,
    "a folder": lambda path: path.mkdir(),
}


def content(path: Path) -> bytes | None:
    return None if path.is_dir() else path.read_bytes()


def flag_one(server: Server) -> dict[str, object]:
    drawn = server.draw()
    assert drawn.status_code == 200, drawn.text
    answer = server.post("/flags", {"image_id": drawn.json()["images"][0]["id"]})
    return {"status": answer.status_code, **answer.json()}


@pytest.mark.fault("F04")
@pytest.mark.parametrize("name", DATABASES)
def test_a_damaged_memory_of_images_is_set_aside(model: Path, tmp_path: Path, name: str) -> None:
    home, path = tmp_path / "home", tmp_path / "home" / "images.db"
    home.mkdir()
    DATABASES[name](path)
    before = content(path)
    with serving(settings_in(home, model)) as server:
        assert flag_one(server)["status"] == 201
        assert server.http.get("/traffic").status_code == 200
    assert content(home / "images.db.damaged-1") == before


@pytest.mark.fault("F04")
@pytest.mark.parametrize("name", DATABASES)
def test_damaged_flags_are_left_alone_and_named(model: Path, tmp_path: Path, name: str) -> None:
    home, path = tmp_path / "home", tmp_path / "home" / "flags.db"
    home.mkdir()
    DATABASES[name](path)
    before = content(path)
    with serving(settings_in(home, model)) as server:
        body = flag_one(server)
        assert body["status"] == 503 and str(path) in str(body["detail"]) and "move" in str(body["detail"])
        assert server.http.get("/flags").status_code == 503
        assert server.draw().status_code == 200
        assert server.http.get("/health/ready").status_code == 200
    assert content(path) == before
    with pytest.raises(Unavailable, match=r"flags\.db"):
        Flags(path, 24).take("job")


@pytest.mark.fault("F04")
def test_flags_damaged_under_a_running_server_cost_no_image(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path / "home", model)) as server:
        assert flag_one(server)["status"] == 201
        for name in ("flags.db", "images.db"):
            for part in (tmp_path / "home").glob(f"{name}*"):
                part.unlink()
            (tmp_path / "home" / name).write_bytes(b"this is no database, " * 400)
        drawn = server.draw(prompt="a cat")
        assert drawn.status_code == 200
        for answer in (server.http.get("/flags"), server.http.get("/traffic")):
            assert answer.status_code == 503 and ".db" in answer.json()["detail"]


def test_a_sound_database_of_ours_is_opened_as_before(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(settings_in(home, model)) as server:
        body = flag_one(server)
    with serving(settings_in(home, model)) as server:
        assert server.http.get(f"/flags/{body['id']}").status_code == 200
    assert not list(home.glob("*.damaged-*"))


def test_the_command_of_last_resort_may_hold_blanks(tmp_path: Path) -> None:
    root = tmp_path / "a store"
    store = open_store(root, versions=1)
    store.activate("v1", by="me")
    shutil.rmtree(root / "versions" / "v1")
    (root / "audit.jsonl").unlink()
    with pytest.raises(SafeCBError, match="no codebook version 'v1'") as refused:
        LiveCodebooks(store).start()
    assert shlex.quote(str(root)) in str(refused.value)
