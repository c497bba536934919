"""A path prefix: the server behind a proxy that cuts it off, behind one that keeps it, and behind a real nginx."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest

from app.factory import create_app
from app.server import bound
from core.errors import BadSetting
from tests.support.serving import PATIENCE_S, Server, serving, settings_in, tiny_model, wait_for

ROOT = "/pictures"
NGINX = shutil.which("nginx")
LOCATION = """
daemon off; pid nginx.pid; error_log error.log;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {
        listen 127.0.0.1:%(port)d;
        location %(root)s/ {
            proxy_pass http://%(server)s%(rest)s;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
        }
    }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("root")
    own = {"SAFECB_ROOT_PATH": ROOT, "SAFECB_TRUSTED_PROXIES": "127.0.0.1"}
    with serving(settings_in(folder / "home", tiny_model(folder / "model"), **own), ready=False) as server:
        wait_for("the server is ready", lambda: server.http.get(f"{ROOT}/health/ready").status_code == 200)
        yield server


@pytest.mark.parametrize("root", ["/images", "/v1", "/console/x", "/metrics"])
def test_a_prefix_that_a_path_begins_with_is_refused_at_start(root: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"SAFECB_ROOT_PATH.*none of codebooks, console"):
        create_app(settings_in(tmp_path, tmp_path, SAFECB_ROOT_PATH=root))


@pytest.mark.parametrize("prefix", ["", ROOT])
def test_every_path_is_found_with_and_without_the_prefix(server: Server, prefix: str) -> None:
    for path in ("/", "/health/live", "/docs", "/openapi.json", "/console/main.js", "/codebooks/v0", "/metrics"):
        assert server.http.get(prefix + path).status_code == 200, path
    assert server.http.post(f"{prefix}/v1/images/generations", json={}).json()["error"]["param"] == "prompt"
    assert server.http.get(f"{prefix}{ROOT}/codebooks").status_code == (404 if prefix else 200)


def test_what_the_server_writes_has_the_prefix(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}{ROOT}/v1", api_key="none") as client:
        drawn = client.images.generate(prompt="a red apple", response_format="url").data
    assert drawn is not None and str(drawn[0].url).startswith(f"{server.url}{ROOT}/images/")
    assert server.http.get(str(drawn[0].url)).status_code == 200
    assert f'"{ROOT}/openapi.json"' in server.http.get(f"{ROOT}/docs").text.replace("'", '"')
    assert server.http.get(f"{ROOT}/openapi.json").json()["servers"] == [{"url": ROOT}]
    started = server.http.post(f"{ROOT}/improve", json={"accept_self_judged": True})
    assert started.headers["location"] == f"{ROOT}/jobs/{started.json()['id']}"
    assert server.http.get(started.headers["location"]).status_code == 200
    server.http.delete(started.headers["location"])


@contextmanager
def proxied(server: Server, folder: Path, rest: str) -> Iterator[str]:
    """An nginx before the server; rest: what it puts in place of the prefix, "" to keep it. Gives its address."""
    with bound(settings_in(folder / "unused", folder)) as listener:
        port = listener.getsockname()[1]
    config = LOCATION % {"port": port, "root": ROOT, "server": server.url.removeprefix("http://"), "rest": rest}
    (folder / "nginx.conf").write_text(config)
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", "nginx.conf"])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for("nginx answers", lambda: _answers(url))
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        httpx2.get(url)
    except httpx2.TransportError:
        return False
    return True


@pytest.mark.skipif(NGINX is None, reason="no nginx is installed")
@pytest.mark.parametrize("rest", ["", "/"], ids=["kept", "cut off"])
def test_an_openai_client_works_through_nginx(server: Server, tmp_path: Path, rest: str) -> None:
    with (
        proxied(server, tmp_path, rest) as url,
        openai.OpenAI(base_url=f"{url}{ROOT}/v1", api_key="none") as client,
        httpx2.Client(timeout=PATIENCE_S) as http,
    ):
        drawn = client.images.generate(prompt="a red apple", response_format="url").data
        assert drawn is not None
        link = str(drawn[0].url)
        assert link.startswith(f"https://{url.removeprefix('http://')}{ROOT}/images/")
        assert http.get(link.replace("https://", "http://")).status_code == 200
        kinds = [event.type for event in client.images.generate(prompt="a", stream=True, partial_images=2)]
        assert kinds.pop() == "image_generation.completed"
        assert len(kinds) <= 2 and set(kinds) <= {"image_generation.partial_image"}  # a busy server skips previews
        page = http.get(f"{url}{ROOT}/")
        script = page.text.split('type="module" src="')[1].split('"')[0]
        assert http.get(f"{url}{ROOT}/{script}").status_code == 200
