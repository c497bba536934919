"""From a name to a model: the embedded checkpoint, a local folder, a repository of the model hub, or random weights.

Whatever cannot be served is refused here with a reason, before the first request.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.utils import logging as progress

from codebook.tensors import is_finite
from core.errors import BadModel
from engine.families.janus.model import FAMILY, JanusModel
from engine.families.janus.random_model import PREFIX, random_janus
from engine.instructions import Instructions, general_chat, read_instructions
from engine.runner.batch import Served

EMBEDDED = Path(__file__).resolve().parent.parent / "checkpoints" / "embedded"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load_model(name: str, device: str, dtype: str) -> Served:
    """Load "embedded", a folder, a hub repository such as "owner/model" or "random:janus-pro-1b", ready to draw.

    device: "cpu", "cuda", "cuda:N" or "auto" (a GPU if there is one); dtype: "float32", "bfloat16", "float16" or
    "auto" (float32 on the CPU, bfloat16 on a GPU). Raises BadModel.
    """
    where = _device(device)
    auto = torch.float32 if where.type == "cpu" else torch.bfloat16
    kind: torch.dtype = auto if dtype == "auto" else getattr(torch, dtype)
    model, processor, instructions, model_hash = load_janus(name, where, kind)
    return JanusModel(model, processor, instructions, name, model_hash)


def load_janus(
    name: str, device: torch.device, dtype: torch.dtype
) -> tuple[JanusForConditionalGeneration, JanusProcessor, Instructions, str]:
    """The model of transformers on its device, its processor, how it is asked, and a hash. Raises BadModel."""
    if name.startswith(PREFIX):
        model, processor, model_hash = random_janus(name, device, dtype)
        return model, processor, general_chat(), model_hash
    folder = find_model(name)
    _check_config(folder)
    model_hash, instructions = hash_weights(folder), read_instructions(folder)
    # On a full disk the bar fails to print, and then holds up the end of the process.
    progress.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
        processor = JanusProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise BadModel(f"{name}: transformers cannot load {folder}: {error}") from error
    _check_weights(name, model, dtype)
    nn.Module.to(model, device=device)
    return model, processor, instructions, model_hash


def find_model(name: str) -> Path:
    """Return the folder that `name` stands for; a hub repository is downloaded once. Raises BadModel."""
    if name.startswith(PREFIX):
        raise BadModel(f"{name}: random weights have no folder, and no judges beside them")
    if name == "embedded":
        if not EMBEDDED.is_dir():
            raise BadModel(f"the embedded model is missing: there is no folder {EMBEDDED}")
        return EMBEDDED
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise BadModel(f"{name}: neither a folder nor a name of the form owner/model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BadModel(f"{name}: no such folder, and the model hub does not give it: {error}") from error


def hash_weights(folder: Path) -> str:
    """Sha256 over the folder's safetensors files, in the order of their names. Raises BadModel if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadModel(f"{folder}: holds no .safetensors file")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_config(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{folder}: no readable config.json with a model_type: {error}") from error
    if kind != FAMILY:
        raise BadModel(f"{folder}: is a {kind!r} model; the families served are: {FAMILY!r}")


def _check_weights(name: str, model: nn.Module, dtype: torch.dtype) -> None:
    for key, weight in model.state_dict().items():
        if not is_finite(weight):
            raise BadModel(f"{name}: its weight {key} holds NaN or infinity as {str(dtype).removeprefix('torch.')}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadModel(f"device {name!r} asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device
