"""Folder of one version: written atomically, read back with every check.

    codebook.safetensors   the tensors
    manifest.json          the facts about them
    manifest.sig           its Ed25519 signature, if the publisher has a key
    report.json, *.png     the report of the round and its images, for people

Knows the files of one folder. Knows nothing of other versions or of which is active.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from codebook.identity import Identity
from codebook.manifest import Manifest, Origin
from codebook.signature import Signatures
from codebook.tensors import check, codebook_hash, pack, unpack
from codebook.value import Codebook
from core.atomic import list_folder, read_file, replace_file, reveal_folder, write_file
from core.errors import BadCodebook, BadInput, NotFound
from core.json_records import encode, from_json, to_json

SIGNATURE = "manifest.sig"
_LIGHT = ("manifest.json", SIGNATURE, "report.json")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png")


def is_light(name: str) -> bool:
    """Whether a file of a version is small, and read without its tensors and images."""
    return name in _LIGHT


@dataclass(frozen=True)
class NewVersion:
    """A version to be written. report: JSON; images: PNG bytes by file name."""

    codebook: Codebook
    origin: Origin
    report: Mapping[str, Any]
    images: Mapping[str, bytes] = field(default_factory=dict)


@contextmanager
def new_version(parent: Path, version: str) -> Iterator[Path]:
    """Give an empty folder that atomically becomes the folder `version` of `parent` unless the block raises.

    The caller holds the lock of `parent`: the remains of publishers that died are removed.
    """
    for left in parent.glob(".v*.tmp"):
        shutil.rmtree(left)
    hidden = parent / f".{version}.tmp"
    try:
        hidden.mkdir()
        yield hidden
        reveal_folder(hidden, parent / version)
    except Exception:  # for example, a full disk: half a version must not use up the remaining space
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def write_version(
    folder: Path, new: NewVersion, base: Tensor, signatures: Signatures, revision: str | None = None
) -> Manifest:
    """Fill the empty `folder`, every file of which is synced on return.

    base: [K, D], the model's own pixel table; revision: the model's.
    """
    tensors = pack(new.codebook)
    packed = safetensors.torch.save(tensors)
    manifest = Manifest.describe(new.codebook, tensors, packed, base, revision, **new.origin)
    write_file(folder / "codebook.safetensors", packed)
    write_file(folder / "report.json", to_json("report", new.report, indent=2))
    for name, image in new.images.items():
        write_file(folder / name, image)
    data = encode(manifest)
    if (signature := signatures.sign(data)) is not None:
        write_file(folder / SIGNATURE, signature)
    write_file(folder / "manifest.json", data)
    return manifest


def read_manifest(folder: Path, version: str) -> Manifest:
    """Return the manifest in `folder`. Raises BadCodebook (manifest) if it is missing or damaged."""
    return Manifest.parse(version, _manifest_bytes(folder, version))


def read_version(
    folder: Path,
    version: str,
    identity: Identity,
    signatures: Signatures,
    own: Codebook | None,
) -> Codebook:
    """Return the codebook in `folder`, after every check.

    own: the model's own codebook, for v0, which nobody needs to sign: its content must be the model's.
    Raises BadCodebook whose `check` is one of manifest, signature, family, model_hash, file, sha256, tensors, dtype,
    shape, finite, zero_rows, tables, content: the first that fails, in this order of groups.
    """
    data = _manifest_bytes(folder, version)  # read once: what is parsed is what is signed
    manifest = Manifest.parse(version, data)
    if own is None or not signatures.are_checked:
        signatures.check(version, data, _signature(folder, version))
    elif manifest.content_hash != codebook_hash(own):
        raise BadCodebook(version, "signature", "it is not the model's own codebook")
    return _checked(folder, manifest, identity)


def sign_version(folder: Path, version: str, identity: Identity, signatures: Signatures) -> bool:
    """Sign the version in `folder` after every other check; False without a key. Raises as read_version."""
    data = _manifest_bytes(folder, version)
    _checked(folder, Manifest.parse(version, data), identity)
    if (signature := signatures.sign(data)) is None:
        return False
    replace_file(folder / SIGNATURE, signature)
    return True


def _checked(folder: Path, manifest: Manifest, identity: Identity) -> Codebook:
    """Return the codebook in `folder` that a manifest describes, after every check of its tensors."""
    version = manifest.version
    identity.check(version, manifest.family, manifest.model_hash)
    tensors = _read_tensors(folder, manifest)
    check(version, identity, tensors)
    manifest.check(tensors)
    codebook = unpack(version, identity, tensors)
    if codebook_hash(codebook) != manifest.content_hash:
        raise BadCodebook(version, "content", "the tensors are not those of the manifest")
    return codebook


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report in `folder`. Raises NotFound if it is missing or damaged."""
    try:
        return from_json(read_file(folder / "report.json"))
    except (OSError, ValueError) as error:
        raise NotFound(f"the report of {folder.name} cannot be read: {error}") from None


def read_image(folder: Path, name: str) -> bytes:
    """Return the bytes of one PNG in `folder`. Raises NotFound unless `name` is one of its images."""
    if not _IMAGE.fullmatch(name):
        raise NotFound(f"{folder.name} has no image {name!r}")
    try:
        return read_file(folder / name)
    except OSError:
        raise NotFound(f"{folder.name} has no image {name!r}") from None


def list_images(folder: Path) -> list[str]:
    """Return the file names of the PNGs in `folder`, sorted."""
    return sorted(filter(_IMAGE.fullmatch, list_folder(folder)))


def check_images(images: Mapping[str, bytes]) -> None:
    """Raise BadInput unless every name is a plain file name that ends in .png."""
    for name in images:
        if not _IMAGE.fullmatch(name):
            raise BadInput("images", name, "letters, digits, - and _, then .png")


def _manifest_bytes(folder: Path, version: str) -> bytes:
    try:
        return read_file(folder / "manifest.json")
    except OSError as error:
        raise BadCodebook(version, "manifest", f"manifest.json cannot be read: {error.strerror}") from None


def _signature(folder: Path, version: str) -> bytes | None:
    """Return the signature in `folder`, if there is one."""
    try:
        return read_file(folder / SIGNATURE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadCodebook(version, "signature", f"{SIGNATURE} cannot be read: {error.strerror}") from None


def _read_tensors(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of codebook.safetensors; the hash is of the very bytes that are parsed."""
    version = manifest.version
    try:
        data = read_file(folder / "codebook.safetensors")
    except OSError as error:
        raise BadCodebook(version, "file", f"codebook.safetensors cannot be read: {error.strerror}") from None
    if (sha256 := hashlib.sha256(data).hexdigest()) != manifest.sha256:
        raise BadCodebook(
            version, "sha256", f"codebook.safetensors hashes to {sha256[:12]}, not {manifest.sha256[:12]}"
        )
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadCodebook(version, "file", f"codebook.safetensors is damaged: {error}") from None
