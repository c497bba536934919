"""Signed versions: what a process with public keys loads and refuses, and how old versions get their signature."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from codebook.signature import Signatures
from codebook.store import CodebookStore
from core.errors import BadCodebook, BadSetting
from core.settings import Settings
from tests.support.books import open_store
from tests.support.serving import Server, publish, serving, settings_in, tiny_model, wait_for


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def made_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key, as the docs make them."""
    folder.mkdir(exist_ok=True)
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def signatures(private: Path | None = None, public: Path | None = None) -> Signatures:
    set_ = {"SAFECB_SIGNING_KEY": private, "SAFECB_PUBLIC_KEYS": public}
    return Signatures.of(Settings.from_environ({key: str(path) for key, path in set_.items() if path}))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return made_keys(tmp_path, "ours")


@pytest.fixture
def root(keys: tuple[Path, Path], tmp_path: Path) -> Path:
    """A store whose v1 is signed and whose v2 is not."""
    open_store(tmp_path / "store", versions=0)
    publish(CodebookStore(tmp_path / "store", signatures(*keys)), 1)
    publish(CodebookStore(tmp_path / "store"), 2)
    return tmp_path / "store"


def test_signed_versions_load_and_others_are_refused_by_name(root: Path, keys: tuple[Path, Path]) -> None:
    checking = CodebookStore(root, signatures(public=keys[1]))
    assert checking.load("v1").version == "v1"
    for move in (checking.load, lambda version: checking.activate(version, by="tests")):
        with pytest.raises(BadCodebook, match=r"signature.*manifest\.sig is missing.*safecb codebooks sign"):
            move("v2")
    assert CodebookStore(root).load("v2").version == "v2"  # nobody checks without a key


def test_a_forged_version_is_refused(root: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    checking, v1, v2 = CodebookStore(root, signatures(public=keys[1])), root / "versions/v1", root / "versions/v2"
    shutil.copy(v1 / "manifest.sig", v2 / "manifest.sig")  # another version's
    with pytest.raises(BadCodebook, match="fits none of the keys"):
        checking.load("v2")
    stranger, _ = made_keys(tmp_path, "theirs")
    CodebookStore(root, signatures(stranger)).sign("v2")
    with pytest.raises(BadCodebook, match="fits none of the keys"):
        checking.load("v2")
    manifest = json.loads((v1 / "manifest.json").read_bytes())
    other = json.loads((v2 / "manifest.json").read_bytes())
    swapped = {**manifest, **{key: other[key] for key in ("sha256", "content_hash")}}
    shutil.copy(v2 / "codebook.safetensors", v1)
    with pytest.raises(BadCodebook, match="sha256"):  # the tensors alone
        checking.load("v1")
    (v1 / "manifest.json").write_text(json.dumps(swapped))
    with pytest.raises(BadCodebook, match="signature"):  # and with a manifest that fits them
        checking.load("v1")
    assert CodebookStore(root).load("v1").version == "v1"


def test_what_is_parsed_is_what_is_signed(root: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that changes between two reads: one read must do."""
    reads = list[str]()

    def counted(path: Path) -> bytes:
        reads.append(path.name)
        return path.read_bytes()

    monkeypatch.setattr("codebook.folder.read_file", counted)
    CodebookStore(root, signatures(public=keys[1])).load("v1")
    assert reads.count("manifest.json") == 1


def test_a_process_that_could_publish_nothing_says_so_before_a_job(keys: tuple[Path, Path]) -> None:
    signatures(*keys).check_signing()
    signatures().check_signing()
    with pytest.raises(BadSetting, match=r"SAFECB_SIGNING_KEY.*SAFECB_PUBLIC_KEYS asks for"):
        signatures(public=keys[1]).check_signing()


def test_an_old_version_is_signed_after_all_other_checks(root: Path, keys: tuple[Path, Path]) -> None:
    signing, checking = CodebookStore(root, signatures(*keys)), CodebookStore(root, signatures(public=keys[1]))
    signing.sign("v2")
    assert checking.load("v2").version == "v2"
    (root / "versions/v2/codebook.safetensors").write_bytes(b"")
    with pytest.raises(BadCodebook, match="sha256"):
        signing.sign("v2")


def test_two_public_keys_are_for_a_change_of_keys(root: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = made_keys(tmp_path, "next")
    both = tmp_path / "both.pem"
    both.write_bytes(keys[1].read_bytes() + public.read_bytes())
    CodebookStore(root, signatures(private, both)).sign("v2")
    checking = CodebookStore(root, signatures(public=both))
    assert [checking.load(name).version for name in ("v1", "v2")] == ["v1", "v2"]


@pytest.mark.parametrize("setting", ["SAFECB_SIGNING_KEY", "SAFECB_PUBLIC_KEYS"])
@pytest.mark.parametrize("kind", ["missing", "no key", "rsa", "the other half"])
def test_a_file_without_the_right_key_is_refused_at_start(
    setting: str, kind: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "file.pem"
    if kind == "no key":
        path.write_text("hello")
    if kind == "rsa":
        openssl("genpkey", "-algorithm", "rsa", "-out", path)
    if kind == "the other half":
        path = keys[setting == "SAFECB_SIGNING_KEY"]
    with pytest.raises(BadSetting, match=rf"{setting}.*PEM file of Ed25519"):
        Signatures.of(Settings.from_environ({setting: str(path)}))


def test_keys_that_do_not_belong_together_are_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    _, public = made_keys(tmp_path, "theirs")
    with pytest.raises(BadSetting, match="the public key of SAFECB_SIGNING_KEY too"):
        signatures(keys[0], public)


def test_a_server_with_a_public_key_serves_its_own_base_and_refuses_a_forged_one(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    model, checked = tiny_model(tmp_path / "model"), {"SAFECB_PUBLIC_KEYS": str(keys[1])}
    home = tmp_path / "home"
    with serving(settings_in(home, model, **checked)) as server:
        assert server.draw().status_code == 200
        unsigned = publish(CodebookStore(server.service.settings.store), 1).version
        refused = server.post(f"/codebooks/{unsigned}/activate", {})
        assert (refused.status_code, refused.json()["check"]) == (409, "signature")
    versions = home / "store" / "versions"
    manifest = json.loads((versions / "v1/manifest.json").read_bytes())
    shutil.copy(versions / "v1/codebook.safetensors", versions / "v0")
    (versions / "v0/manifest.json").write_text(json.dumps({**manifest, "version": "v0", "job": None, "round": None}))
    with serving(settings_in(home, model, **checked), ready=False) as server:
        assert "not the model's own codebook" in reason(server)


def reason(server: Server) -> str:
    """Why the server is not ready, once it knows."""
    wait_for("the store is checked", lambda: server.service.failure is not None)
    words: str = server.http.get("/health/ready").json()["reason"]
    return words
