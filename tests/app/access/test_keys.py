"""Attacks on who may call, and on the calls that need nothing: health and console."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.schemas import GenerateRequest
from codebook.store import CodebookStore
from core.settings import Settings
from engine.registry import open_model
from engine.runner.batch import RunningBatch
from engine.runner.served import Served
from tests.support.serving import Server, publish, serving, settings_in, wait_for

STATIC = Path(__file__).parents[3] / "app" / "console" / "static"
CLOSED = [
    ("POST", "/generate"),
    ("POST", "/improve"),
    ("GET", "/jobs"),
    ("GET", "/jobs/x"),
    ("DELETE", "/jobs/x"),
    ("GET", "/codebooks"),
    ("GET", "/codebooks/active"),
    ("GET", "/codebooks/audit"),
    ("GET", "/codebooks/v0"),
    ("GET", "/codebooks/v0/report"),
    ("GET", "/codebooks/v0/report/a.png"),
    ("POST", "/codebooks/v0/activate"),
    ("POST", "/codebooks/v0/derive"),
    ("POST", "/codebooks/v0/revoke"),
    ("POST", "/codebooks/v0/restore"),
    ("POST", "/codebooks/v0/shadow"),
    ("POST", "/codebooks/v0/canary"),
    ("GET", "/codebooks/shadow"),
    ("DELETE", "/codebooks/shadow"),
    ("GET", "/codebooks/traffic"),
    ("PUT", "/codebooks/traffic"),
    ("DELETE", "/codebooks/traffic"),
    ("POST", "/codebooks/rollback"),
    ("POST", "/codebooks/compare"),
    ("GET", "/jobs/x/events"),
    ("GET", "/traffic"),
    ("GET", "/judges"),
    ("GET", "/policies"),
    ("GET", "/policies/x"),
    ("PUT", "/policies/x"),
    ("PUT", "/policies/x/benign"),
    ("DELETE", "/policies/x"),
    ("POST", "/flags"),
    ("GET", "/flags"),
    ("GET", "/flags/x"),
    ("GET", "/flags/x/image"),
    ("POST", "/flags/x/approve"),
    ("POST", "/flags/x/reject"),
    ("GET", "/images/x"),
    ("POST", "/images/x/redecode"),
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/v1/models/x"),
]
OPERATORS_ALONE = {
    ("POST", "/codebooks/v0/shadow"),
    ("POST", "/codebooks/v0/canary"),
    ("DELETE", "/codebooks/shadow"),
    ("GET", "/codebooks/audit"),
    ("POST", "/improve"),
    ("PUT", "/policies/x"),
    ("PUT", "/policies/x/benign"),
    ("DELETE", "/policies/x"),
    ("DELETE", "/jobs/x"),
    ("POST", "/codebooks/v0/activate"),
    ("POST", "/codebooks/v0/derive"),
    ("POST", "/codebooks/v0/revoke"),
    ("POST", "/codebooks/v0/restore"),
    ("PUT", "/codebooks/traffic"),
    ("DELETE", "/codebooks/traffic"),
    ("POST", "/codebooks/rollback"),
    ("GET", "/flags"),
    ("GET", "/flags/x"),
    ("GET", "/flags/x/image"),
    ("POST", "/flags/x/approve"),
    ("POST", "/flags/x/reject"),
}
OPEN = ["/", "/health/live", "/health/ready", "/docs", "/openapi.json"]


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with serving(settings_in(home, model, SAFECB_API_KEYS="first-key,second:key")) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first-key,second:key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": b"Bearer first-key\xe9"},
        {"X-API-Key": "first-ke"},
        {"X-API-Key": ""},
        {"X-API-Key": b"\xff\xfe"},
    ],
)
def test_without_a_key_nothing_opens(server: Server, method: str, path: str, headers: dict[str, str]) -> None:
    body = {"prompt": "a"} if method == "POST" else None
    answer = server.http.request(method, path, headers=headers, json=body)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
    assert answer.headers["Content-Type"] == kind


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer first-key"}, {"Authorization": "bearer second:key"}, {"X-API-Key": "second:key"}],
)
def test_each_key_opens_in_each_form(server: Server, headers: dict[str, str]) -> None:
    assert server.http.get("/codebooks/active", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def operated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = {"SAFECB_API_KEYS": "an-apps", "SAFECB_OPERATOR_KEYS": "an-operators"}
    with serving(settings_in(tmp_path_factory.mktemp("home"), model, **keys)) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_steers_takes_an_operators_key_where_there_are_any(operated: Server, method: str, path: str) -> None:
    def status(key: str) -> int:
        body = {"prompt": ""} if method == "POST" else None  # what is let through is refused as bad, or not found
        return operated.http.request(method, path, headers={"X-API-Key": key}, json=body).status_code

    assert status("wrong") == 401
    assert (status("an-apps") == 403) == ((method, path) in OPERATORS_ALONE)
    assert status("an-operators") not in (401, 403)


def test_operators_keys_alone_leave_drawing_open(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_OPERATOR_KEYS="an-operators")) as server:
        assert server.draw().status_code == 200
        assert server.http.post("/codebooks/rollback").status_code == 403


def test_a_caller_names_the_active_version_alone(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_OPERATOR_KEYS="an-operators")) as server:
        publish(CodebookStore(server.service.settings.store), 1)
        other = {"prompt": "a cat", "codebook": "v1"}
        refused = server.http.post("/generate", json=other)
        assert refused.status_code == 403 and "codebook: 'v1' is not the active version" in refused.json()["detail"]
        pair = {"prompt": "a cat", "versions": ["v0", "v1"]}
        refused = server.http.post("/codebooks/compare", json=pair)
        assert refused.status_code == 403 and "versions.1: 'v1'" in refused.json()["detail"]
        assert server.http.post("/generate", json=other | {"codebook": "v0"}).status_code == 200  # active
        server.http.headers["X-API-Key"] = "an-operators"
        assert server.http.post("/codebooks/v1/activate").status_code == 200
        assert server.http.post("/generate", json=other | {"codebook": "v0"}).json()["codebook"] == "v0"
        assert server.http.post("/codebooks/compare", json=pair).status_code == 200
        del server.http.headers["X-API-Key"]
        assert server.http.post("/generate", json=other | {"codebook": "v0"}).status_code == 403


def test_everyone_names_versions_where_the_setting_says_so(model: Path, tmp_path: Path) -> None:
    keys = {"SAFECB_OPERATOR_KEYS": "an-operators", "SAFECB_VERSION_CHOICE": "everyone"}
    with serving(settings_in(tmp_path, model, **keys)) as server:
        publish(CodebookStore(server.service.settings.store), 1)
        assert server.http.post("/generate", json={"prompt": "a cat", "codebook": "v1"}).json()["codebook"] == "v1"


def test_every_route_is_either_closed_or_meant_to_be_open(server: Server) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    known = {re.sub(r"/v0|/x\b|/a\.png", "", path) for _, path in CLOSED} | set(OPEN)
    assert {re.sub(r"/\{\w+\}", "", path) for path in paths} <= known


@pytest.mark.parametrize("path", OPEN)
def test_the_open_calls_need_no_key(server: Server, path: str) -> None:
    assert server.http.get(path).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_foreign_page_cannot_move_the_codebook(server: Server, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "X-API-Key": "first-key"}
    answer = server.http.post("/codebooks/rollback", headers=headers)
    assert answer.status_code == 403


def test_the_console_is_whole(server: Server) -> None:
    answer = server.http.get("/")
    page = answer.text
    assert "Safe-CB" in page
    modules, waiting = dict[str, str](), {"main.js"}
    while waiting:
        name = waiting.pop()
        module = server.http.get(f"/console/{name}")
        assert module.status_code == 200 and "javascript" in module.headers["Content-Type"]
        modules[name] = module.text
        waiting |= set(re.findall(r"(?:from|import) '\./([\w.]+)'", module.text)) - set(modules)
    code = "".join(modules.values())
    assert {name for name in modules} == {path.name for path in STATIC.glob("*.js")}
    assert server.http.get("/console/console.css").headers["Content-Type"].startswith("text/css")
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page + code)
    fields = set(re.findall(r'name="(\w+)"', page))
    assert {"policy", "second_judge", "images", "minutes", "accept_self_judged"} <= fields
    assert set(re.findall(r"at\('([\w-]+)'\)", code)) <= set(re.findall(r'id="([\w-]+)"', page))
    assert not re.search(r" on\w+=", page) and page.count("<script") == page.count('<script type="module" src=') == 1
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "script-src" not in policy and "frame-ancestors 'none'" in policy


def test_until_the_model_is_there_calls_get_a_retry_after(model: Path, tmp_path: Path) -> None:
    go_on = threading.Event()

    def load(settings: Settings) -> Served:
        go_on.wait()
        return open_model(settings)

    with serving(settings_in(tmp_path, model), load, ready=False) as server:
        try:
            assert server.http.get("/health/live").status_code == 200
            assert server.http.get("/health/ready").status_code == 503
            for answer in (server.draw(), server.post("/improve", {}), server.http.get("/codebooks")):
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
        finally:
            go_on.set()


def test_an_engine_that_fails_is_reported(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(settings_in(tmp_path, model)) as server:
        monkeypatch.setattr(RunningBatch, "free", property(lambda batch: 1 / 0))
        assert server.draw().status_code == 500
        wait_for("the engine has failed", lambda: server.service.is_broken)
        with httpx2.Client(base_url=server.url) as http:  # after an error the server ends the connection
            assert http.post("/generate", json={"prompt": "a cat"}).status_code == 503
            assert http.get("/health/ready").status_code == 503
            assert http.get("/codebooks").status_code == 200


def test_a_loader_that_breaks_is_reported(tmp_path: Path) -> None:
    def load(settings: Settings) -> Served:
        raise OSError("no space left")

    with serving(settings_in(tmp_path, tmp_path), load, ready=False) as server:
        wait_for("the loader has broken", lambda: server.service.failure)
        assert "no space left" in server.http.get("/health/ready").json()["reason"]
        assert server.draw().status_code == 503


def test_the_schema_tells_the_ranges() -> None:
    fields = GenerateRequest.model_json_schema()["properties"]
    assert (fields["n"]["minimum"], fields["n"]["maximum"]) == (1, 8)
    assert fields["seed"]["anyOf"][0]["exclusiveMaximum"] == 2**63


@pytest.mark.parametrize(
    ("trusted", "believed"), [({}, False), ({"SAFECB_TRUSTED_PROXIES": "192.0.2.0/24"}, False),
                              ({"SAFECB_TRUSTED_PROXIES": "192.0.2.1, 127.0.0.0/8"}, True)]
)  # fmt: skip
def test_only_a_trusted_proxy_says_who_calls(
    model: Path, tmp_path: Path, trusted: dict[str, str], believed: bool
) -> None:
    with serving(settings_in(tmp_path, model, **trusted)) as server:
        image, callers = server.draw().json()["images"][0]["id"], []
        for address in ("203.0.113.7", "203.0.113.8"):
            headers = {"X-Forwarded-For": address, "X-Forwarded-Proto": "https"}
            made = server.post("/flags", {"image_id": image}, **headers)
            callers.append(made.json()["caller"])
        link = {"prompt": "a", "response_format": "url"}
        url = server.post("/v1/images/generations", link, **headers).json()["data"][0]["url"]
    assert (len(set(callers)) == 2) == believed == url.startswith("https:")
