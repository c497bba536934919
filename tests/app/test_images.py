"""Images by id: the same file as was given out, other versions' pixels, links that cannot be made up, request ids."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.access.links import VALID_S, Links, file_secret
from tests.support.serving import Server, pixels, serving, settings_in, texts


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


def test_an_image_is_the_file_that_was_given_out(server: Server) -> None:
    version = server.publish(4)
    for codebook in ("v0", version):
        drawn = server.draw(codebook=codebook).json()["images"][0]
        answer = server.http.get(f"/images/{drawn['id']}")
        assert answer.content == base64.b64decode(drawn["b64_png"])
        assert answer.headers["X-Codebook-Version"] == codebook and answer.headers["X-Seed"] == "7"
        assert answer.headers["X-Codebook-Hash"] == drawn["codebook_hash"]


def test_redecoding_shows_the_same_tokens_under_another_table(server: Server) -> None:
    version = server.publish(6)
    drawn = server.draw(codebook="v0").json()["images"][0]
    again = server.post(f"/images/{drawn['id']}/redecode", {"codebook": version})
    assert again.headers["X-Codebook-Version"] == version and again.headers["X-Tokens-Drawn-Under"] == "v0"
    assert (texts(again.content)["codebook"], texts(again.content)["tokens_drawn_under"]) == (version, "v0")
    assert pixels(again.content) == pixels(server.png(codebook=version))  # its edit is of the pixel table alone
    same = server.post(f"/images/{drawn['id']}/redecode", {"codebook": "v0"})
    assert same.content == base64.b64decode(drawn["b64_png"])


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/images/{id}/redecode", {"codebook": "v99"}, 422, "codebook"),
        ("/images/{id}/redecode", {"codebook": "latest"}, 422, "codebook"),
        ("/images/{id}/redecode", {}, 422, "codebook"),
        ("/images/nothing/redecode", {"codebook": "v0"}, 404, "remembered"),
    ],
)
def test_a_bad_redecode_is_refused(server: Server, path: str, body: object, status: int, says: str) -> None:
    id = server.draw().json()["images"][0]["id"]
    answer = server.post(path.format(id=id), body)
    assert answer.status_code == status and says in answer.json()["detail"]


def test_a_version_that_is_not_active_is_for_operators(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_OPERATOR_KEYS="an-operators")) as server:
        id, version = server.draw().json()["images"][0]["id"], server.publish(1)
        body = {"codebook": version}
        assert server.post(f"/images/{id}/redecode", body).status_code == 403
        assert server.post(f"/images/{id}/redecode", body, **{"X-API-Key": "an-operators"}).status_code == 200


def test_an_image_that_is_not_kept_is_not_found(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_KEEP_IMAGES="0")) as server:
        assert server.http.get(f"/images/{server.draw().json()['images'][0]['id']}").status_code == 404
        link = {"prompt": "a", "response_format": "url"}
        assert "keeps no images" in server.post("/v1/images/generations", link).json()["error"]["message"]


def query_of(link: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in link.split("&"))


def test_a_link_says_one_thing_for_one_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = Links(file_secret(tmp_path / "link.key"))
    query = query_of(links.query("/images/a", format="webp", quality=80))
    assert links.holds("/images/a", query)
    assert not links.holds("/images/b", query)
    for name in query:
        assert not links.holds("/images/a", query | {name: "1"})
        assert not links.holds("/images/a", {key: value for key, value in query.items() if key != name})
    assert not links.holds("/images/a", query | {"more": "1"})
    assert not Links(file_secret(tmp_path / "other.key")).holds("/images/a", query)
    assert Links(file_secret(tmp_path / "link.key")).holds("/images/a", query)  # after a restart
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + VALID_S + 2)
    assert not links.holds("/images/a", query)


def test_the_secret_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "link.key"
    links, queries = [Links(file_secret(path)) for _ in range(16)], list[dict[str, str]]()
    threads = [
        threading.Thread(target=lambda one=one: queries.append(query_of(one.query("/images/a")))) for one in links
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(queries) == 16 and all(links[0].holds("/images/a", query) for query in queries)
    assert path.stat().st_mode & 0o777 == 0o600 and [file.name for file in tmp_path.iterdir()] == ["link.key"]


def test_every_response_has_a_request_id(server: Server) -> None:
    drawn = server.draw()
    assert drawn.headers["X-Request-Id"] == drawn.json()["id"]
    assert server.http.get("/nothing").headers["X-Request-Id"] != server.http.get("/nothing").headers["X-Request-Id"]
    for given, taken in (("my-own.Id_7", True), ("x" * 101, False), ("a b", False), ('a"', False)):
        answer = server.http.get("/health/live", headers={"X-Request-Id": given})
        assert (answer.headers["X-Request-Id"] == given) == taken
    assert len(server.http.get("/health/live").headers.get_list("X-Request-Id")) == 1
