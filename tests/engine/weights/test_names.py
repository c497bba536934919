"""Names of models: repositories of the hub at a revision, in the hub's own cache; homes; and hashes remembered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants, hf_api

from codebook.store import CodebookStore
from core.errors import BadCodebook, BadModel
from core.settings import Settings
from engine.registry import check_model, load_model, open_model
from engine.weights import hashes
from engine.weights.hashes import hash_weights
from safety.judges.grammar import read_name
from tests.support.serving import serving, settings_in
from tests.support.tiny import build_tiny
from worker.jobs import _load

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """A cache of the hub with one repository, owner/tiny, of two commits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "models--owner--tiny"
        for commit, seed in ((FIRST, 0), (SECOND, 1)):
            build_tiny(self._folder / "snapshots" / commit, seed)
        (self._folder / "refs").mkdir()
        self.set("main", FIRST)
        self.set("next", SECOND)

    def set(self, branch: str, commit: str) -> None:
        (self._folder / "refs" / branch).write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    torch.set_num_threads(1)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


def test_a_name_is_of_one_commit(hub: Hub) -> None:
    first, second = (load_model(name, "cpu", "float32").facts for name in ("owner/tiny", "owner/tiny@next"))
    assert (first.model_id, first.title, first.revision) == (f"owner/tiny@{FIRST}", "owner/tiny", FIRST)
    assert second.revision == SECOND and second.model_hash != first.model_hash
    assert load_model(first.model_id, "cpu", "float32").facts == first
    assert first.shown()["revision"] == FIRST and first.shown()["model_id"] == "owner/tiny"
    with pytest.raises(BadModel, match="owner/tiny@nowhere"):
        load_model("owner/tiny@nowhere", "cpu", "float32")
    with pytest.raises(BadModel, match="owner/model@revision"):
        load_model("embedded@main", "cpu", "float32")


class _Site(BaseHTTPRequestHandler):
    """The site of the hub: repositories by their names, as folders of files by theirs."""

    repositories: ClassVar[Mapping[str, Mapping[str, bytes]]] = {}

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/").removeprefix("api/models/")
        files = self.repositories.get("/".join(path.split("/")[:2]), {})
        rest = path.split("/", 2)[2:]
        if files and rest and rest[0].startswith("resolve/"):
            content = files[rest[0].removeprefix(f"resolve/{FIRST}/")]
        elif files and rest in ([], ["revision/main"]):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
            content = json.dumps({"id": "x", "sha": FIRST, "siblings": siblings}).encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {"ETag": '"1"', "X-Repo-Commit": FIRST, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """What the site of the hub holds; all may be changed."""
    repositories = dict[str, dict[str, bytes]]()
    monkeypatch.setattr(_Site, "repositories", repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    yield repositories
    server.shutdown()
    server.server_close()


def test_a_repository_is_checked_before_it_is_downloaded(
    site: dict[str, dict[str, bytes]], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / FIRST
    files = {file.name: file.read_bytes() for file in downloaded.iterdir()}
    name, shard = "model.safetensors", "model-00001-of-00002.safetensors"
    index = json.dumps({"weight_map": {"a": shard, "b": shard.replace("00001-", "00002-")}}).encode()
    site["owner/tiny"] = site["new/tiny"] = files
    site["new/pickled"] = {file: body for file, body in files.items() if file != name} | {"pytorch_model.bin": b"x"}
    site["new/part"] = site["new/pickled"] | {shard: b"x", "model.safetensors.index.json": index}
    site["new/cut"] = files | {name: files[name][:-1000]}
    site["new/text"] = files | {name: b"no weights, but a text that is long enough"}
    site["new/else"] = {"config.json": b'{"model_type": "none"}', name: b"x"}
    assert "not downloaded yet" in str(refusal("new/tiny")) and "downloaded" in check_model("owner/tiny")  # no network
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    on_hub, on_disk = check_model("new/tiny@main"), check_model(str(downloaded))
    assert on_hub.startswith("new/tiny@main, janus: 0.00 GiB of weights as float32, ")
    assert on_hub.split(": ")[1].split(";")[0] == on_disk.split(": ")[1].split(";")[0]
    assert on_hub.endswith("; 1 MiB on the model hub")
    assert refusal("new/pickled").startswith("new/pickled: holds pytorch_model.bin")
    assert "new/part: lacks model-00002-of-00002.safetensors" in refusal("new/part")
    assert "new/else: is a 'none' model" in refusal("new/else")
    assert "new/none: no such folder, and the model hub does not give it" in refusal("new/none")
    assert "new/tiny@v2: no such folder, and the model hub does not give it" in refusal("new/tiny@v2")
    assert refusal("new/cut").startswith("new/cut/model.safetensors: is cut off: it has")
    assert refusal("new/text").startswith("new/text/model.safetensors: is no safetensors file")
    monkeypatch.setattr("engine.runner.memory.available", lambda _: 2**16)
    for use in (check_model, load_model):
        with pytest.raises(BadModel, match=r"new/tiny: .* must be free on the machine, and 0.00 GiB are"):
            use("new/tiny", "cpu", "float32")
    assert not (tmp_path / "hub" / "models--new--tiny").exists()


def refusal(name: str) -> str:
    with pytest.raises(BadModel) as refused:
        check_model(name)
    return str(refused.value)


def test_every_process_takes_the_commit_that_the_server_has_recorded(hub: Hub, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "home", Path("owner/tiny"))
    with serving(settings) as server:
        assert server.http.get("/health/ready").json()["model"] == "owner/tiny"
        assert server.http.get("/codebooks/v0").json()["revision"] == FIRST
        assert server.service.settings.model == f"owner/tiny@{FIRST}"
        version = server.publish(1)
        assert server.service.store.manifest(version).revision == FIRST
    hub.set("main", SECOND)
    assert _load(settings).facts.revision == FIRST
    with pytest.raises(BadModel, match=rf"owner/tiny@main is commit {SECOND}, and the store .* is for commit {FIRST}"):
        open_model(settings_in(tmp_path / "home", Path("owner/tiny@main")))
    hub.set("main", FIRST)
    assert open_model(settings_in(tmp_path / "home", Path("owner/tiny@main"))).facts.revision == FIRST
    other = load_model("owner/tiny@next", "cpu", "float32")
    with pytest.raises(BadCodebook, match=r"this store is for owner/tiny, .*another model needs another store"):
        CodebookStore(settings.store).initialise(other.base_codebook(), other.facts.shown())


def test_a_home_is_written_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = build_tiny(tmp_path / "mein Modell")
    settings = Settings.from_environ({"SAFECB_HOME": "~/home", "SAFECB_MODEL": "~/mein Modell"})
    assert (settings.home, settings.model) == (tmp_path / "home", str(folder))
    assert load_model("~/mein Modell", "cpu", "float32").facts.model_id == str(folder)
    assert read_name("hf:~/judge#harm").source == str(tmp_path / "judge")
    assert read_name("zeroshot:owner/clip?texts=~/t.json").options["texts"] == str(tmp_path / "t.json")


def test_weights_are_read_once_and_anew_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, memory, reads = tmp_path / "ein Modell", tmp_path / "home" / "weights.json", list[int]()
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(b"weights")
    real = hashes._hash

    def counted(files: Sequence[Path]) -> str:
        reads.append(len(files))
        return real(files)

    monkeypatch.setattr(hashes, "_hash", counted)
    first = hash_weights(folder, memory=memory)
    assert not memory.parent.exists()
    memory.parent.mkdir()
    assert [hash_weights(folder, memory=memory) for _ in range(3)] == [first] * 3 and reads == [1, 1]
    before = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    second = hash_weights(folder, memory=memory)
    assert second != first and second == real([file])
    shutil.copy2(file, folder / "more.safetensors")
    assert hash_weights(folder, memory=memory) not in (first, second)
    memory.write_text("no JSON")
    assert hash_weights(folder, memory=memory) == real([file, folder / "more.safetensors"])
    count = len(reads)
    hash_weights(folder, memory=memory)
    assert len(reads) == count
