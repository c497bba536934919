"""Attacks on /policies: faulty files, names, sizes, media types, uploads during reads."""

from __future__ import annotations

import threading

import httpx2
import pytest

from tests.support.serving import POLICY_HEADER as HEADER
from tests.support.serving import Server, kites

CSV, JSON_LINES, TEXT = "text/csv", "application/jsonl", "text/plain"


def put(server: Server, name: str, data: bytes, kind: str = CSV) -> httpx2.Response:
    return server.http.put(f"/policies/{name}", content=data, headers={"Content-Type": kind})


def files(server: Server) -> set[str]:
    folder = server.service.settings.home / "policies"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_policies_are_uploaded_listed_and_deleted(server: Server) -> None:
    shipped = server.http.get("/policies").json()
    assert [(policy["name"], policy["ships"]) for policy in shipped] == [("emoji", True), ("open", True)]
    assert "violence" in shipped[1]["categories"] and set(shipped[1]["prompts"].values()) == {None}
    answer = put(server, "kites", kites())
    body = answer.json()
    assert answer.status_code == 201
    assert (body["categories"], body["prompts"]) == (["red kites"], {"red kites": 15, "benign": 25})
    assert [policy["name"] for policy in server.http.get("/policies").json() if policy["usual"]] == ["open"]
    assert (body["ships"], body["fault"], body["links"]) == (False, None, {"self": "/policies/kites"})
    assert server.http.get("/policies/kites").json() == body == server.http.get("/policies").json()[2]
    again = put(server, "kites", b'{"prompt": "a red kite", "category": "red kites"}\n', JSON_LINES)
    assert (again.status_code, again.json()["prompts"]) == (200, {"red kites": 1})
    assert again.json()["version"] != body["version"]
    assert files(server) == {".lock", "kites.jsonl"}
    assert server.http.delete("/policies/kites").status_code == 204
    assert files(server) == {".lock"}
    for method in ("GET", "DELETE"):
        assert server.http.request(method, "/policies/kites").status_code == 404


def test_a_faulty_file_is_refused_by_line_and_nothing_is_stored(server: Server) -> None:
    faulty = HEADER.encode() + b"a red kite,red kites,,,,\na red kite,red kites,odd,,,\n"
    for name in ("kites", "others"):
        answer = put(server, name, faulty)
        assert answer.status_code == 422
        assert (answer.json()["field"], answer.json()["value"]) == (f"{name}.csv, line 3: kind", "'odd'")
        assert files(server) == {".lock"}
    version = put(server, "kites", kites()).json()["version"]
    for data in (faulty, b"", b"\xff\xfe", b"prompt\n", b'{"prompt": 1}\n'):
        assert put(server, "kites", data).status_code == 422
    assert server.http.get("/policies/kites").json()["version"] == version
    assert files(server) == {".lock", "kites.csv"}


def test_a_prompt_that_breaks_the_adult_only_rule_is_refused_without_its_text(server: Server) -> None:
    row = "a teenager on a beach,nudity,,,,\n"
    answer = put(server, "mine", (HEADER + row).encode())
    assert answer.status_code == 422 and "line 2" in answer.text and "beach" not in answer.text
    assert "mine.csv" not in files(server)


@pytest.mark.parametrize("name", ["My", "a.csv", "x" * 65, "a_b", "%2e%2e", "emoji", "open"])
def test_names(server: Server, name: str) -> None:
    answer = put(server, name, kites())
    assert answer.status_code in (404, 422) and not files(server) - {".lock"}
    if answer.status_code == 422:
        assert answer.json()["field"] == "policy"


def test_those_that_ship_cannot_be_deleted(server: Server) -> None:
    for name in ("emoji", "open"):
        assert server.http.delete(f"/policies/{name}").status_code == 409
        assert server.http.get(f"/policies/{name}").status_code == 200


def test_sizes_and_media_types(server: Server) -> None:
    words = f"a red kite, {'high over a hill, ' * 200}".encode()
    rows = b"".join(b'"%s %d",red kites\n' % (words[:3900], i) for i in range(700))
    answer = put(server, "large", b"prompt,category\n" + rows)  # more than another call may send
    assert len(rows) > 2 * 2**20 and answer.status_code == 201, answer.text
    answer = put(server, "larger", b"prompt,category\n" + rows * 4)
    assert answer.status_code == 413 and "larger.csv" not in files(server)
    assert server.http.post("/generate", content=rows, headers={"Content-Type": "application/json"}).status_code == 413
    for kind in ("application/json", "text/html", ""):
        assert put(server, "other", kites(), kind).status_code == 415
    assert put(server, "other", kites(), "Text/CSV; charset=utf-8").status_code == 201


def test_benign_prompts_stand_beside(server: Server) -> None:
    def beside(name: str, data: bytes, kind: str = TEXT) -> httpx2.Response:
        return server.http.put(f"/policies/{name}/benign", content=data, headers={"Content-Type": kind})

    assert beside("kites", b"a lamp\n").status_code == 404
    assert beside("open", b"a lamp\n").status_code in (404, 409)
    put(server, "kites", kites(benign=0, benign_validation=0))
    assert beside("kites", b"a lamp\na cup\n").json()["prompts"] == {"red kites": 15, "benign": 2}
    assert beside("kites", b"prompt\na chair\n", CSV).json()["prompts"] == {"red kites": 15, "benign": 1}
    answer = beside("kites", b"a red kite over pair hill 3\n")
    assert answer.status_code == 422 and "kites.benign.txt, line 1" in answer.text
    assert server.http.get("/policies/kites").json()["prompts"] == {"red kites": 15, "benign": 1}
    assert server.http.delete("/policies/kites").status_code == 204 and files(server) == {".lock"}


def test_a_file_that_went_bad_is_listed_with_its_fault(server: Server) -> None:
    put(server, "kites", kites())
    (server.service.settings.home / "policies" / "kites.csv").write_text("text\na kite\n")
    policy = server.http.get("/policies").json()[2]
    assert "kites.csv" in policy["fault"] and (policy["version"], policy["prompts"]) == ("", None)


def test_uploads_during_reads(server: Server) -> None:
    """A reader sees either of two files, in whichever format, and never half of one or none."""
    data = {CSV: kites(), JSON_LINES: b'{"prompt": "a red kite", "category": "red kites"}\n'}
    versions = {put(server, "kites", data[kind], kind).json()["version"] for kind in data}
    ended = threading.Event()

    def write() -> None:
        with httpx2.Client(base_url=server.url) as http:
            for i in range(30):
                kind = (CSV, JSON_LINES)[i % 2]
                http.put("/policies/kites", content=data[kind], headers={"Content-Type": kind}).raise_for_status()
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not ended.is_set():
        answer = server.http.get("/policies/kites")
        assert answer.status_code == 200
        seen.append((answer.json()["version"], answer.json()["fault"]))
    writer.join()
    assert {version for version, _ in seen} <= versions and {fault for _, fault in seen} == {None}
