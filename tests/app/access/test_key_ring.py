"""Attacks on the file of keys: scopes, rotation while the server runs, faults in the file, and names in the audit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.access.key_ring import KeyRing, Scope
from app.factory import create_app
from app.server import check_exposure
from core.errors import BadSetting
from core.settings import Settings
from tests.app.access.test_keys import CLOSED
from tests.support.serving import Server, serving, settings_in

ROUTES = {  # what takes more than any key
    Scope.GENERATE: [
        ("POST", "/generate"),
        ("POST", "/v1/images/generations"),
        ("POST", "/images/x/redecode"),
        ("POST", "/codebooks/compare"),
    ],
    Scope.FLAG: [("POST", "/flags")],
    Scope.IMPROVE: [("POST", "/improve"), ("DELETE", "/jobs/x")],
    Scope.PUBLISH: [
        ("GET", "/codebooks/audit"),
        ("POST", "/codebooks/v0/activate"),
        ("POST", "/codebooks/v0/derive"),
        ("POST", "/codebooks/v0/revoke"),
        ("POST", "/codebooks/v0/restore"),
        ("POST", "/codebooks/v0/shadow"),
        ("POST", "/codebooks/v0/canary"),
        ("DELETE", "/codebooks/shadow"),
        ("PUT", "/codebooks/traffic"),
        ("DELETE", "/codebooks/traffic"),
        ("POST", "/codebooks/rollback"),
    ],
    Scope.ADMIN: [
        ("GET", "/flags"),
        ("GET", "/flags/x"),
        ("GET", "/flags/x/image"),
        ("POST", "/flags/x/approve"),
        ("POST", "/flags/x/reject"),
        ("PUT", "/policies/x"),
        ("PUT", "/policies/x/benign"),
        ("DELETE", "/policies/x"),
    ],
}


def entry(key: str, *scopes: str, name: str = "") -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[[key]]\nname = "{name or key}"\nsha256 = "{digest}"\nscopes = {list(map(str, scopes))}\n'


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text("".join(entry(scope, scope) for scope in Scope))
    return path


@pytest.fixture(scope="module")
def server(model: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model, SAFECB_KEYS=str(file))) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_each_scope_opens_what_is_its_own(server: Server, method: str, path: str) -> None:
    needed = next((scope for scope, routes in ROUTES.items() if (method, path) in routes), None)

    def status(key: str) -> int:
        body = {"prompt": ""} if method == "POST" else None  # what is let through is refused as bad, or not found
        if method == "POST" and path == "/codebooks/rollback":
            body = {"to": "v99"}
        return server.http.request(method, path, headers={"X-API-Key": key}, json=body).status_code

    assert status("wrong") == 401
    for scope in Scope:
        refused = needed is not None and scope not in (needed, Scope.ADMIN)
        assert (status(scope) == 403) == refused, scope


def test_either_right_key_opens(server: Server) -> None:
    for headers in (
        {"Authorization": "Bearer another-service's", "X-API-Key": "flag"},
        {"Authorization": "Bearer flag", "X-API-Key": "another-service's"},
        {"Authorization": "Basic YTpi", "X-API-Key": "flag"},
    ):
        assert server.http.get("/codebooks/active", headers=headers).status_code == 200


def test_keys_are_taken_and_dropped_while_the_server_runs(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("old", "generate"))
    with serving(settings_in(tmp_path / "home", model, SAFECB_KEYS=str(file))) as server:

        def opens(key: str) -> bool:
            return server.http.get("/codebooks/active", headers={"X-API-Key": key}).status_code == 200

        assert opens("old") and not opens("new")
        file.write_text(entry("old", "generate") + entry("new", "generate"))
        assert opens("old") and opens("new")
        (tmp_path / "next.toml").write_text(entry("new", "generate"))
        (tmp_path / "next.toml").replace(file)
        assert not opens("old") and opens("new")
        for fault in ("[[key]", entry("other", "everything"), ""):
            file.write_text(fault)
            assert opens("new") and not opens("other")
        file.unlink()
        assert opens("new")


def test_the_audit_names_who_moved_the_alias(server: Server) -> None:
    version = server.publish(1)
    moved = server.post(f"/codebooks/{version}/activate", {}, **{"X-API-Key": "publish"})
    assert moved.json()["new"]["moved_by"] == "publish"
    back = server.post("/codebooks/rollback", {}, **{"X-API-Key": "admin"})
    assert back.json()["new"]["moved_by"] == "admin"
    assert [record["moved_by"] for record in server.service.store.audit()[-2:]] == ["publish", "admin"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "[[key]]"),
        ("[[key]", "TOML"),
        ("a = 1", "[[key]]"),
        ("key = []", "[[key]]"),
        ("key = 1", "[[key]]"),
        ("key = [1]", "the fields"),
        (entry("a", "generate").replace("sha256", "sha"), "key 1"),
        (entry("a", "generate") + "key = 'secret'\n", "the fields"),
        (entry("a", "generate") + entry("b", "all"), "key 2, scopes"),
        (entry("a"), "scopes"),
        (entry("a", "generate") + entry("b", "generate", name="a"), "each name once"),
        (entry("a", "generate", name="a b"), "name"),
        (entry("a", "generate").replace('sha256 = "', 'sha256 = "0'), "sha256"),
    ],
)
def test_a_file_with_a_fault_stops_the_start(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    settings = Settings.from_environ({"SAFECB_HOME": str(tmp_path), "SAFECB_KEYS": str(file)})
    with pytest.raises(BadSetting, match="SAFECB_KEYS") as caught:
        create_app(settings)
    assert says in str(caught.value)


def test_a_file_stands_alone_and_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="readable"):
        KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "none.toml")}))
    (tmp_path / "keys.toml").write_text(entry("a", "generate"))
    for other in ("SAFECB_API_KEYS", "SAFECB_OPERATOR_KEYS"):
        with pytest.raises(BadSetting, match="beside"):
            KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "keys.toml"), other: "a"}))


@pytest.mark.parametrize(
    ("host", "more", "refused"),
    [
        ("127.0.0.1", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("192.0.2.1", {}, True),
        ("example.org", {}, True),
        ("0.0.0.0", {"SAFECB_OPEN": "on"}, False),
        ("0.0.0.0", {"SAFECB_API_KEYS": "a"}, False),
        ("0.0.0.0", {"SAFECB_KEYS": "/keys.toml"}, False),
    ],
)
def test_a_server_without_keys_stays_on_its_machine(host: str, more: dict[str, str], refused: bool) -> None:
    settings = Settings.from_environ({"SAFECB_HOST": host} | more)
    if not refused:
        check_exposure(settings)
        return
    with pytest.raises(BadSetting, match="SAFECB_OPEN"):
        check_exposure(settings)


def test_another_sites_page_may_link_here_and_nothing_more(server: Server) -> None:
    def status(method: str, mode: str, site: str = "cross-site") -> int:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "X-API-Key": "admin"}
        path = "/codebooks/active" if method == "GET" else "/codebooks/rollback"
        return server.http.request(method, path, headers=headers).status_code

    assert status("GET", "navigate") == 200
    for method, mode in (("GET", "cors"), ("GET", "no-cors"), ("GET", ""), ("POST", "navigate"), ("POST", "cors")):
        assert status(method, mode) == status(method, mode, "same-site") == 403
