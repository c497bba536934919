"""Attacks on /flags: what is remembered and for how long, what one caller can do, what a job takes."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from core.errors import NotFound
from records.flags import OPEN_A_CALLER, USED_A_CALLER, USED_A_CATEGORY, Flags
from records.image_log import ImageMemory, KeptImage
from records.journal import Journal
from tests.support.serving import Server, pixels, serving, settings_in, wait_for


def flag(server: Server, prompt: str = "a red apple", **more: object) -> dict[str, str]:
    image = server.draw(prompt=prompt).json()["images"][0]
    answer = server.post("/flags", {"image_id": image["id"], **more})
    assert answer.status_code == 201, answer.text
    body: dict[str, str] = answer.json()
    return body


def test_an_image_is_flagged_with_what_it_was_made_of(server: Server) -> None:
    version = server.publish(5)
    drawn = server.http.post("/generate", json={"prompt": "a red apple", "seed": 7, "codebook": version})
    image = drawn.json()["images"][0]
    body = server.post("/flags", {"image_id": image["id"], "category": "gore", "note": "blood"}).json()
    assert (body["prompt"], body["codebook"], body["image_id"]) == ("a red apple", version, image["id"])
    assert (body["state"], body["category"], body["note"], body["job"]) == ("accepted", "gore", "blood", None)
    assert server.http.get(f"/flags/{body['id']}").json() == body
    assert server.http.get("/flags").json() == [body]
    shown = server.http.get(f"/flags/{body['id']}/image")
    assert pixels(shown.content) == pixels(server.png(codebook=version)) != pixels(server.png())


def test_a_png_answer_names_its_image_too(server: Server) -> None:
    answer = server.http.post("/generate", json={"prompt": "a red apple", "seed": 7}, headers={"Accept": "image/png"})
    assert answer.headers["X-Image-Id"] == server.draw().json()["images"][0]["id"]
    assert server.post("/flags", {"image_id": answer.headers["X-Image-Id"]}).status_code == 201


def test_the_same_image_has_the_same_id_and_another_one_has_not(server: Server) -> None:
    ids = [server.draw(**body).json()["images"][0]["id"] for body in ({}, {}, {"seed": 8}, {"temperature": 0.5})]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_an_unknown_image_is_not_found(server: Server) -> None:
    answer = server.post("/flags", {"image_id": "no-such-image"})
    assert answer.status_code == 404 and "no-such-image" in answer.json()["detail"]
    assert server.http.get("/flags/x").status_code == 404


def test_a_new_category_waits_for_a_person(server: Server) -> None:
    body = flag(server, category="politics")
    assert body["state"] == "review"
    links: dict[str, str] = body["links"]  # type: ignore[assignment]
    refused = server.post(links["approve"], {})
    assert (refused.status_code, refused.json()["field"]) == (422, "category")
    approved = server.post(links["approve"], {"category": "weapons"}).json()
    assert (approved["state"], approved["category"]) == ("accepted", "weapons")
    assert server.http.get("/flags", params={"state": "review"}).json() == []
    assert server.post(links["reject"], {}).json()["state"] == "rejected"
    assert server.post(links["approve"], {}).status_code == 409


def test_a_prompt_counts_once_and_a_caller_can_open_few(server: Server) -> None:
    first = flag(server, "a red apple")
    assert flag(server, "A  red apple!") == first
    for i in range(1, OPEN_A_CALLER):
        flag(server, f"apple {i}")
    image = server.draw(prompt="one more").json()["images"][0]
    answer = server.post("/flags", {"image_id": image["id"]})
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) > 0


def test_the_flags_of_a_caller_are_known_by_its_key(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_API_KEYS="one,two")) as server:
        callers = []
        for key in ("one", "two"):
            drawn = server.post("/generate", {"prompt": key, "seed": 1}, Authorization=f"Bearer {key}")
            body = {"image_id": drawn.json()["images"][0]["id"]}
            callers.append(server.post("/flags", body, Authorization=f"Bearer {key}").json()["caller"])
        assert len(set(callers)) == 2 and not {"one", "two"} & set(callers)
        again = server.post("/flags", body, Authorization="Bearer one").json()  # of what "two" has flagged
        assert (again["prompt"], again["caller"]) == ("two", callers[0])


def test_a_memory_that_cannot_be_written_costs_no_image(server: Server, tmp_path: Path) -> None:
    server.draw()  # so that the file is in use
    (tmp_path / "images.db").unlink()
    for name in ("images.db-wal", "images.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "images.db").write_bytes(b"this is no database, " * 400)
    drawn = server.draw()
    assert drawn.status_code == 200
    assert server.post("/flags", {"image_id": drawn.json()["images"][0]["id"]}).status_code >= 400


def logged_image(prompt: str) -> KeptImage:
    return KeptImage(f"id of {prompt}", prompt, "v0", 2**63 - 1, True, "gore", torch.tensor([0, 5, 16383]))


def test_images_are_forgotten_by_number_and_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ImageMemory(tmp_path / "images.db", most=3, hours=1)
    for name in "abcd":
        memory.keep([logged_image(name)])
    with pytest.raises(NotFound):
        memory.get("id of a")
    image = memory.get("id of b")
    assert (image.prompt, image.seed, image.unsafe, image.tokens.tolist()) == ("b", 2**63 - 1, True, [0, 5, 16383])
    memory.keep([logged_image("b")])  # drawn again: now the youngest
    memory.keep([logged_image("e"), logged_image("f")])
    assert memory.get("id of b").prompt == "b"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    with pytest.raises(NotFound):
        memory.get("id of b")
    memory.keep([logged_image("g")])
    assert b"id of b" not in (tmp_path / "images.db").read_bytes()


def test_nothing_is_kept_where_nothing_is_to_be_kept(tmp_path: Path) -> None:
    memory = ImageMemory(tmp_path / "images.db", most=0, hours=24)
    memory.keep([logged_image("a")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotFound, match="none"):
        memory.get("id of a")


def test_what_is_past_its_time_is_forgotten_without_another_image(model: Path, tmp_path: Path) -> None:
    ImageMemory(tmp_path / "images.db", most=3, hours=1).keep([logged_image("a")])
    flags = Flags(tmp_path / "flags.db", hours=0)
    flags.settle(flags.add(logged_image("a"), "gore", "", "c", review=False).id, "rejected")
    with serving(settings_in(tmp_path, model, SAFECB_KEEP_IMAGES="0", SAFECB_KEEP_HOURS="0")) as server:
        wait_for("the flag is forgotten", lambda: server.service.flags.list() == [])
        with closing(sqlite3.connect(tmp_path / "images.db")) as images:
            wait_for("the image too", lambda: images.execute("SELECT count(*) FROM images").fetchone() == (0,))
    assert not [file for file in tmp_path.glob("*.db*") if b"id of a" in file.read_bytes()]


def test_one_caller_cannot_fill_a_job_and_a_resume_takes_the_same(tmp_path: Path) -> None:
    flags = Flags(tmp_path / "flags.db", hours=1)
    for i in range(OPEN_A_CALLER):
        flags.add(logged_image(f"flood {i}"), "gore", "", "flooder", review=False)
    for caller in range(4):
        for i in range(7):
            flags.add(logged_image(f"honest {caller} {i}"), "gore", "", f"caller {caller}", review=False)
    waits = flags.add(logged_image("new"), "politics", "", "somebody", review=True)
    job = Journal(tmp_path / "jobs").create("improve", {}).id
    taken = [flag.id for flag in flags.take(job)]
    assert len(taken) == USED_A_CATEGORY and waits.id not in taken
    callers = [flags.get(id).caller for id in taken]
    assert callers.count("flooder") == USED_A_CALLER
    assert [flag.id for flag in flags.take(job)] == taken
    assert not set(taken) & {flag.id for flag in flags.take("another job")}
    assert {flags.get(id).state for id in taken} == {"used"}


def test_settled_flags_are_forgotten_and_open_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Flags(tmp_path / "flags.db", hours=1)
    settled, waits = (flags.add(logged_image(name), "gore", "", "c", review=False) for name in ("settled", "open"))
    flags.settle(settled.id, "rejected")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    flags.add(logged_image("later"), "gore", "", "c", review=False)
    assert {flag.prompt for flag in flags.list()} == {"open", "later"}
    assert flags.get(waits.id).state == "accepted"
    taken = flags.take("a job")
    flags.forget()
    assert [flag.id for flag in flags.take("a job")] == [flag.id for flag in taken] and len(taken) == 2


def test_a_flag_that_was_settled_before_that_was_noted_is_forgotten_by_its_age(tmp_path: Path) -> None:
    flags = Flags(tmp_path / "flags.db", hours=0)
    flags.settle(flags.add(logged_image("a"), "gore", "", "c", review=False).id, "rejected")
    with closing(sqlite3.connect(tmp_path / "flags.db", isolation_level=None)) as db:
        db.execute("DELETE FROM settled")
    flags.forget()
    assert flags.list() == []
