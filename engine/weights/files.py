"""Weight files of a checkpoint's folder: all there, whole and of plain numbers, or refused before one is loaded.

Knows names, headers and config.json. Reads no weight.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import BadModel

INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt")
LONGEST_HEADER = 100_000_000  # bytes, of the format
# Of weights as they are and of buffers; others hold packed or scaled numbers.
PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}  # bytes of a number
FLOATING = {"F64", "F32", "F16", "BF16"}
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_POINTER = b"version "  # the first eight bytes of a pointer of Git LFS


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. kind: of its numbers, as the format calls it."""

    name: str
    kind: str
    count: int


def weight_files(folder: Path, more: Sequence[str] = ()) -> list[Path]:
    """The safetensors files of a folder by name, then those of its sub-folders `more`. Raises BadModel without any."""
    files = [file for place in (folder, *(folder / name for name in more)) for file in sorted(_weights(place))]
    if files:
        return files
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise BadModel(
            f"{folder}: holds {_some(pickled)} and no .safetensors file; a pickle may run code, so none is read in "
            f"serving: write them anew with safecb convert {folder} NEW_FOLDER"
        )
    raise BadModel(f"{folder}: holds no .safetensors file")


def check_folder(folder: Path, more: Sequence[str] = (), whole: bool = True) -> None:
    """Raise BadModel where weights of a folder, or of its sub-folders `more`, are missing, cut off or quantised.

    whole: whether there is something in the files; else names and config.json have to do.
    """
    for place in (folder, *(folder / name for name in more if (folder / name).is_dir())):
        _check_plain(place)
        if place == folder and _lies_below(folder, more):
            continue
        files = weight_files(place)
        _check_shards(place, [file.name for file in files])
        for file in files if whole else ():
            for tensor in read_header(file):
                if tensor.kind not in PLAIN:
                    raise _quantised(place, f"its tensor {tensor.name} is of {tensor.kind}")


def read_header(file: Path) -> Iterator[Stored]:
    """The tensors of a safetensors file, by its header. Raises BadModel for one that is cut off, or none."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            first = opened.read(8)
            length = int.from_bytes(first, "little")
            if first == _POINTER:
                raise BadModel(f"{file}: is a pointer of Git LFS in place of the weights; git lfs pull brings them")
            if len(first) < 8 or length > min(size - 8, LONGEST_HEADER):
                raise BadModel(f"{file}: is no safetensors file, or cut off: it has {size:,} bytes")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        tensors = [Stored(name, each["dtype"], math.prod(each["shape"])) for name, each in header.items()]
        end = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
    except OSError as error:
        raise BadModel(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{file}: is no safetensors file: {error}") from error
    if size < end:
        raise BadModel(f"{file}: is cut off: it has {size:,} of {end:,} bytes; copy or download it again")
    yield from tensors


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises BadModel where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{folder}: no readable config.json with a model_type: {error}") from error
    return config


def _lies_below(folder: Path, more: Sequence[str]) -> bool:
    """Whether all weights lie in sub-folders, each of which is there."""
    above = (file for pattern in ("*.safetensors", *PICKLED) for file in folder.glob(pattern))
    return bool(more) and not any(above) and all((folder / name).is_dir() for name in more)


def _weights(folder: Path) -> Iterator[Path]:
    return folder.glob("*.safetensors")


def _check_plain(folder: Path) -> None:
    """Raise BadModel for a configuration, or a part of one, that names a method of quantising."""
    config = read_config(folder)
    for part in (config, *config.values()):
        if isinstance(part, Mapping) and isinstance(scheme := part.get("quantization_config"), Mapping):
            bits = next((f", {n} bits" for n in (4, 8) if scheme.get(f"load_in_{n}bit") or scheme.get("bits") == n), "")
            method = scheme.get("quant_method", "bitsandbytes" if bits else "an unnamed method")
            raise _quantised(folder, f"its config.json says {method}{bits}")


def _quantised(folder: Path, why: str) -> BadModel:
    return BadModel(
        f"{folder}: its weights are quantised ({why}), and the engine multiplies plain ones; take the checkpoint that "
        "they were made of, in float32, bfloat16 or float16: SAFECB_DTYPE=bfloat16 takes half of float32's memory"
    )


def _check_shards(folder: Path, names: Sequence[str]) -> None:
    """Raise BadModel, naming them, where files of the index are missing, or the index of several is."""
    if not (folder / INDEX).exists():
        parts = [shard for name in names if (shard := _SHARD.fullmatch(name))]
        if parts and "model.safetensors" not in names:
            raise BadModel(f"{folder}: lacks {INDEX}, which says what is in {_some([part[0] for part in parts])}")
        return
    try:
        places: Mapping[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        due = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{folder / INDEX}: cannot be read: {error}") from error
    if missing := [name for name in due if name not in names]:
        weights = sum(place in missing for place in places.values())
        raise BadModel(
            f"{folder}: lacks {_some(missing)}, of the {len(due)} files of {INDEX}, and so {weights:,} of "
            f"{len(places):,} weights; copy or download the rest"
        )


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
