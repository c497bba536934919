"""The commands for people against a real server and a real store: what they print, write and end with."""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.access.key_ring import KeyRing, Scope
from cli.client import Client
from cli.main import main
from core.settings import Settings
from core.wire import SPINNING
from tests.support.serving import Server, pixels, played_worker, serving, settings_in, texts

SAFECB = str(Path(sys.executable).with_name("safecb"))  # the entry point, as a shell finds it
Output = pytest.CaptureFixture[str]


@pytest.fixture
def server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(settings_in(tmp_path / "home", model)) as server:
        monkeypatch.setenv("SAFECB_PORT", str(urlsplit(server.url).port))
        monkeypatch.setenv("SAFECB_HOME", str(tmp_path / "home"))
        yield server


def test_generate_writes_what_the_server_draws(server: Server, tmp_path: Path, capsys: Output) -> None:
    version = server.publish(1)
    assert main(["generate", "a red apple", "-o", str(tmp_path / "new" / "a.png"), "-n", "2", "--seed", "7"]) == 0
    drawn = server.draw(n=2).json()["images"]
    files = [(tmp_path / "new" / f"a-{number}.png").read_bytes() for number in (1, 2)]
    assert files == [base64.b64decode(image["b64_png"]) for image in drawn]
    lines = capsys.readouterr().out.splitlines()
    for image, line in zip(drawn, lines, strict=True):
        assert image["id"] in line and f"seed {image['seed']}" in line
    one = tmp_path / "b.png"
    assert main(["generate", "a red apple", "-o", str(one), "--codebook", version, "--server", server.url]) == 0
    assert texts(one.read_bytes())["codebook"] == version


def test_versions_are_listed_moved_and_compared(server: Server, tmp_path: Path, capsys: Output) -> None:
    version = server.publish(1)
    assert main(["codebooks", "activate", version]) == 0
    assert server.http.get("/codebooks/active").json()["version"] == version
    assert main(["codebooks", "list"]) == 0
    assert [line[:1] for line in capsys.readouterr().out.splitlines()[2:]] == [" ", "*"]
    assert main(["codebooks", "rollback"]) == 0
    assert capsys.readouterr().out == f"v0 is active, before it {version}\n"
    assert main(["codebooks", "show", version]) == 0
    assert '"parent": "v0"' in capsys.readouterr().out
    out = tmp_path / "both"
    assert main(["codebooks", "compare", "a red apple", "v0", version, "--seed", "7", "-o", str(out)]) == 0
    assert pixels((out / f"{version}.png").read_bytes()) == pixels(server.png(codebook=version))
    assert {path.name for path in out.iterdir()} == {"v0.png", f"{version}.png", "difference.png"}


def test_a_store_is_moved_without_a_server(server: Server, capsys: Output) -> None:
    version = server.publish(1)
    assert main(["codebooks", "activate", version, "--offline"]) == 0
    assert main(["codebooks", "list", "--offline"]) == 0 and f"*  {version}" in capsys.readouterr().out
    assert main(["codebooks", "rollback", "--offline"]) == 0
    assert [move["moved_by"] for move in server.service.store.audit()[-2:]] == ["command line"] * 2
    assert main(["codebooks", "rollback", "--to", "v99", "--offline"]) == 1
    assert "v99" in capsys.readouterr().err
    assert server.service.store.active().version == "v0"


def test_jobs_and_flags_are_seen_and_settled(server: Server, capsys: Output) -> None:
    job = server.post("/improve", {"policy": "open"}).json()["id"]
    assert main(["jobs", "list"]) == 0 and job in capsys.readouterr().out
    with played_worker(server, publishes=True):
        assert main(["jobs", "follow", job]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["jobs", "show", job]) == 0 and '"finished"' in capsys.readouterr().out
    assert main(["jobs", "cancel", job]) == 1 and "safecb: DELETE" in capsys.readouterr().err
    image = server.draw().json()["images"][0]["id"]
    flag = server.post("/flags", {"image_id": image, "category": "something else"}).json()["id"]
    assert main(["flags", "list", "--state", "review"]) == 0 and flag in capsys.readouterr().out
    assert main(["flags", "reject", flag]) == 0 and "rejected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["generate"], 2, "prompt"),
        (["generate", ""], 1, "prompt"),
        (["generate", "a", "--codebook", "v77"], 1, "codebook"),
        (["jobs", "show", "x"], 1, "no job 'x'"),
        (["codebooks", "activate", "v77"], 1, "v77"),
        (["jobs", "list", "--server", "ftp://x"], 1, "SAFECB_SERVER"),
        (["jobs", "list", "--server", "http://127.0.0.1:1"], 1, "is `safecb serve` running?"),
        (["key", "a b"], 1, "NAME"),
        (["key", "a", "--scopes", "all"], 2, "all"),
        (["unknown"], 2, "unknown"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    server: Server, capsys: Output, command: list[str], code: int, says: str
) -> None:
    try:
        ended = main(command)
    except SystemExit as error:  # argparse's own
        ended = int(str(error.code))
    written = capsys.readouterr().err
    assert ended == code and says in written and "Traceback" not in written


def test_loopback_goes_through_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert main(["jobs", "list"]) == 0
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    assert main(["jobs", "list", "--server", server.url]) == 0
    assert main(["jobs", "list", "--server", "http://192.0.2.1"]) == 1
    assert "proxy" in capsys.readouterr().err


def test_another_server_does_not_see_this_ones_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"SAFECB_OPERATOR_KEYS": "own", "SAFECB_API_KEYS": "also-own"}

    def key(**more: str) -> str | None:
        with closing(Client.of(Settings.from_environ(own | more))) as client:
            return client._http.headers.get("Authorization")

    assert key() == "Bearer own"
    assert key(SAFECB_SERVER="http://other.example") is None
    assert key(SAFECB_SERVER="http://other.example", SAFECB_SERVER_KEY="theirs") == "Bearer theirs"


def test_an_answer_that_is_not_json_is_named(capsys: Output) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.handle_request).start()
        assert main(["jobs", "list", "--server", f"http://127.0.0.1:{page.server_port}"]) == 1
    assert "text/html, not JSON" in capsys.readouterr().err


def test_a_new_key_opens_what_its_entry_says(tmp_path: Path, capsys: Output) -> None:
    assert main(["key", "shop", "--scopes", "generate, publish"]) == 0
    written = capsys.readouterr()
    (tmp_path / "keys.toml").write_text(written.out)
    assert written.err.strip() not in written.out and tomllib.loads(written.out)["key"][0]["name"] == "shop"
    found = KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "keys.toml")})).find([written.err.strip()])
    assert found is not None and found[1].name == "shop"
    assert found[1].scopes == {Scope.GENERATE, Scope.PUBLISH}


def test_the_doctor_finds_nothing_and_names_each_fault(server: Server, tmp_path: Path, capsys: Output) -> None:
    version = server.publish(1)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(line.startswith("ok  ") for line in lines) and "2 versions, all sound" in lines[2]
    file = server.service.settings.store / "versions" / version / "codebook.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    faults = {
        "SAFECB_MODEL": (str(tmp_path), "model"),
        "SAFECB_REDIS_URL": ("redis://127.0.0.1:1", "Redis"),
        "SAFECB_HOST": ("0.0.0.0", "keys"),
        "SAFECB_SECOND_JUDGE": ("nobody", "second judge"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, (value, _) in faults.items():
            patch.setenv(name, value)
        assert main(["doctor"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT")]
    assert [line.split(":")[0].removeprefix("FAULT").strip() for line in found] == [
        "model", "store", "Redis", "second judge", "keys",
    ]  # fmt: skip
    assert version in found[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFECB_HOME", str(file))
        assert main(["doctor"]) == 1 and "FAULT  home" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFECB_HOST", "no.such.host.invalid")
        assert main(["doctor"]) == 1 and "an address of this machine" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFECB_JUDGE", "sample:0.1")
        main(["doctor"])
        assert "sample:0.1; windows of live traffic need SAFECB_KEEP_IMAGES=6000 or" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFECB_PORT", "many")
        assert main(["doctor"]) == 1 and "FAULT  settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["co"], {"completion", "codebooks", "convert"}),
        (["ev"], {"evaluate"}),
        (["codebooks", "a"], {"activate", "audit"}),
        (["codebooks", "compare", "--s"], {"--seed", "--server"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_options_and_values(words: list[str], offered: set[str], tmp_path: Path) -> None:
    script = subprocess.run([SAFECB, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    typed = " ".join(f"'{word}'" for word in words)
    script += f"\nCOMP_WORDS=(safecb {typed}); COMP_CWORD={len(words)}\n_safecb_completion {SAFECB}\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(shell: str) -> None:
    script = subprocess.run([SAFECB, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert f"complete_{shell}" in script


@pytest.mark.parametrize("command", ["evaluate", "draw", "check", "verify"])
def test_a_command_that_draws_lets_waiting_threads_sleep(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPINNING[0], "to be put back")
    monkeypatch.delenv(SPINNING[0])
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert os.environ[SPINNING[0]] == SPINNING[1]
