"""Checkpoints of transformers that judge or match images: folder, weights and processor, each checked by name.

Knows transformers' Auto classes, and imports them where a checkpoint is read: most processes read none, and start the
sooner. Knows nothing of harm and of prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from codebook.tensors import is_finite
from core.errors import BadModel
from engine.png import to_bytes
from engine.registry import find_model, hash_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Whatever transformers raises over a folder that it cannot read, or over inputs that a model cannot.
_FAULTS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, RuntimeError)


@contextmanager
def refusal(who: str) -> Iterator[None]:
    """Raise BadModel, naming `who` ("judge hf:..."), for whatever a checkpoint is refused or fails over."""
    try:
        yield
    except (*_FAULTS, BadModel, SafetensorError) as error:
        raise BadModel(f"{who}: {error}") from error


def read_config(source: str, classes: Container[type[PreTrainedConfig]], kind: str) -> tuple[Path, PreTrainedConfig]:
    """The folder of a checkpoint (a hub repository is downloaded once) and its configuration.

    `classes` are the configurations allowed, `kind` names them ("image classifier"). Raises BadModel.
    """
    from transformers import AutoConfig

    folder = find_model(source)
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in classes:
        raise BadModel(f"{folder}: is a {config.model_type!r} model, not a {kind}")
    return folder, config


# Any: an Auto class of transformers, whose from_pretrained has no types; and the model of transformers it gives.
def load_weights(auto: Any, folder: Path, device: torch.device) -> Any:  # noqa: ANN401
    """The model that the class `auto` makes of `folder`, for inference: float32 on the CPU, bfloat16 on a GPU.

    Raises BadModel for weights that are missing (they would be random) or hold NaN or infinity.
    """
    from transformers.utils import logging as progress

    progress.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model, report = auto.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise BadModel(f"{folder}: lacks the weights {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    for key, weight in model.state_dict().items():
        if not is_finite(weight):
            raise BadModel(f"{folder}: its weight {key} holds NaN or infinity")
    model.train(False).requires_grad_(False)
    nn.Module.to(model, device=device)
    return model


# Any: an image processor, of which transformers exports no common type.
def load_image_processor(folder: Path) -> Any:  # noqa: ANN401
    """The folder's image processor. Raises BadModel where it has none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    except _FAULTS as error:
        raise BadModel(f"{folder}: has no image processor: {error}") from error


def hash_checkpoint(folder: Path, question: object = None) -> str:
    """Sha256 over the folder's weights and over what is asked of them (JSON: labels, texts). Raises BadModel."""
    weights = hash_weights(folder)
    if question is None:
        return weights
    return hashlib.sha256(f"{weights}\n{json.dumps(question, sort_keys=True)}".encode()).hexdigest()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in [-1, 1] as PIL's, RGB: what every image processor takes."""
    return [Image.fromarray(image.numpy()) for image in to_bytes(images)]


def in_batches(score: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """The scores [B] float32 on the CPU of images [B, 3, H, W], `batch` at a time; none of no images."""
    with torch.inference_mode():
        scores = [score(some).float().cpu() for some in torch.split(images, batch) if some.shape[0]]
    return torch.cat([torch.zeros(0), *scores])


def check_size(score: Callable[[Tensor], Tensor], size: int) -> None:
    """Raise BadModel unless `score` takes an image of `size` pixels a side: the processor may make another of it."""
    try:
        score(torch.zeros(1, 3, size, size))
    except _FAULTS as error:
        raise BadModel(f"cannot take an image of {size} x {size} pixels: {error}") from error
