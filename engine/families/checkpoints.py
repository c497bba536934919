"""Checkpoints of transformers: a class loaded from a folder, or a refusal that names what is wrong.

Knows transformers' loaders. Knows no class of a model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from codebook.tensors import is_finite
from core.errors import BadModel
from engine.instructions import FILE


def from_folder(kind: Any, folder: Path, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:  # noqa: ANN401
    """Load a class of transformers from a folder; with a device a model, in a dtype, whose weights are finite.

    Raises BadModel.
    """
    # On a full disk the progress bar fails to print, and then holds up the end of the process.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {} if device is None else {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    before = transformers_logging.get_verbosity()
    # Weights that its class does not have, such as an image decoder's, are read by the family.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True, **options)
        if device is not None:
            loaded, report = loaded
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise BadModel(f"{folder}: transformers cannot load it: {error}") from error
    finally:
        transformers_logging.set_verbosity(before)
    if device is not None:
        check_complete(folder, report["missing_keys"])
        check_weights(folder, loaded)
        nn.Module.to(loaded, device=device)
    return loaded


def check_complete(folder: Path, missing: Collection[str]) -> None:
    """Raise BadModel for weights that a class has and its files lack: they would be random."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise BadModel(
            f"{folder}: its files lack {len(missing)} weights of its class, such as {some}: a checkpoint of another "
            "layout, or a part of one"
        )


def read_tensors(folder: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Read from a folder's files the tensors whose names begin with a prefix, which is cut off. Raises BadModel."""
    tensors = dict[str, Tensor]()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as reader:
                for key in reader.keys():  # noqa: SIM118  (no mapping)
                    if (prefix := next((p for p in prefixes if key.startswith(p)), None)) is not None:
                        tensors[key.removeprefix(prefix)] = reader.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise BadModel(f"{file}: cannot be read: {error}") from error
    return tensors


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path, part: str) -> None:
    """Load tensors that must be all of a module's. Raises BadModel, naming what is missing or strange in the part."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise BadModel(f"{folder}: the weights of its {part} do not fit: {error}") from error


def check_weights(folder: Path, model: nn.Module) -> None:
    """Raise BadModel, naming it, for a weight that is NaN or infinite."""
    for key, weight in model.state_dict().items():
        if not is_finite(weight):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise BadModel(f"{folder}: its weight {key} holds NaN or infinity as {dtype}")


def read_option(folder: Path, name: str, default: int) -> int:
    """Return a whole number above 0 of the folder's safecb.json. Raises BadModel for another value."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8")).get(name, default)
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise BadModel(f"{folder / FILE}: {error}") from error
    if type(value) is not int or value < 1:
        raise BadModel(f"{folder / FILE}: {name} is {value!r}, not a whole number above 0")
    return value
