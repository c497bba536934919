"""Conversion of a checkpoint with pickled weights into one of safetensors, in a folder of its own.

Nothing in a pickle is run: one that holds more than tensors is refused. Knows files. Knows no model.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import BadInput, BadModel
from engine.weights.files import INDEX, PICKLED

_OLD, _NEW = "pytorch_model", "model"  # how transformers begins the names of either kind
_OLD_INDEX = f"{_OLD}.bin.index.json"


def convert(source: Path, target: Path) -> list[str]:
    """Write the checkpoint in `source` with its weights as safetensors; return the names of the new weight files.

    Sub-folders and all other files come along. Raises BadInput unless `target` is new, BadModel for weights that cannot
    be read; then there is no `target`.
    """
    if not source.is_dir():
        raise BadInput("FOLDER", str(source), "the folder of a checkpoint")
    if target.exists():
        raise BadInput("NEW_FOLDER", str(target), "a folder that does not exist yet")
    if not any(source.rglob(f"{_OLD}*.bin")):
        raise BadInput("FOLDER", str(source), f"a folder with {_OLD}.bin, or with {_OLD}-00001-of-0000N.bin and others")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        part = Path(name) / "part"
        written = list(_write(source, part))
        part.rename(target)
    return written


def _write(source: Path, part: Path) -> Iterator[str]:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = part / file.relative_to(source)
        if any(name.startswith(".") for name in place.relative_to(part).parts):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.name == _OLD_INDEX:
            (place.parent / INDEX).write_text(_renamed_index(file), encoding="utf-8")
        elif file.suffix == ".bin" and file.name.startswith(_OLD):
            new = place.with_name(_renamed(file.name))
            save_file(_tensors(file), new, {"format": "pt"})
            yield str(new.relative_to(part))
        elif not any(file.match(pattern) for pattern in PICKLED):
            shutil.copy2(file, place)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file by name, each with a memory of its own."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise BadModel(f"{file}: cannot be read as tensors alone: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise BadModel(f"{file}: is not a table of tensors by name, as transformers writes one")
    places = [tensor.untyped_storage().data_ptr() for tensor in loaded.values()]
    first = {place: name for name, place in reversed(list(zip(loaded, places, strict=True)))}
    return {
        name: tensor.contiguous() if first[place] == name else tensor.clone(memory_format=torch.contiguous_format)
        for (name, tensor), place in zip(loaded.items(), places, strict=True)
    }


def _renamed(name: str) -> str:
    return f"{_NEW}{name.removeprefix(_OLD).removesuffix('.bin')}.safetensors"


def _renamed_index(file: Path) -> str:
    """The text of an index of shards under their new names."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        index["weight_map"] = {key: _renamed(name) for key, name in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{file}: cannot be read: {error}") from error
    return json.dumps(index, indent=2)
