"""Hash of a checkpoint's weights, computed once and remembered while no file changes.

A file has changed where its size, its times or its inode have. Knows files. Knows nothing of what they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.atomic import read_file, replace_file
from core.errors import BadModel, NoStorage
from core.json_records import from_json, to_json
from engine.weights.files import weight_files

BLOCK = 1 << 20  # bytes read together


def hash_weights(folder: Path, more: Sequence[str] = (), memory: Path | None = None) -> str:
    """Sha256 over the folder's safetensors files, in the order of their names, then of those in the folders `more`.

    memory: a file of hashes computed before; without one, and where it cannot be read or written, all is read. Its
    folder is not made: a command that only looks leaves nothing. Raises BadModel if there are no weights, or they
    cannot be read.
    """
    files = weight_files(folder, more)
    try:
        states = _states(files)
        known = {} if memory is None else _read(memory)
        place = str(folder.resolve())
        match known.get(place):
            case {"files": before, "sha256": str(sha256)} if before == states:
                return sha256
        sha256 = _hash(files)
        if memory is not None and _states(files) == states:  # else one has changed while it was read
            with suppress(OSError, NoStorage):
                replace_file(memory, to_json("hashes", {**known, place: {"files": states, "sha256": sha256}}, indent=2))
    except OSError as error:
        raise BadModel(f"{folder}: its weights cannot be read: {error}") from error
    return sha256


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _states(files: Sequence[Path]) -> list[list[Any]]:
    """What changes when a file does, as JSON. Not its contents' time alone: a copy may keep that."""
    stats = [(path, path.stat()) for path in files]
    return [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in stats]


def _read(memory: Path) -> Mapping[str, Any]:
    try:
        return from_json(read_file(memory))
    except (OSError, ValueError, NoStorage):
        return {}
