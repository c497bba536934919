"""Janus models from a folder or with random weights: the model of transformers, its processor and its instructions.

Knows transformers' loaders. Knows nothing of names and hubs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.utils import logging as transformers_logging

from codebook.tensors import is_finite
from core.errors import BadModel
from engine.families.janus.model import JanusModel
from engine.families.janus.random_model import random_janus
from engine.instructions import general_chat, read_instructions


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> JanusModel:
    """Load the model called `name` from its folder. Raises BadModel."""
    instructions = read_instructions(folder)
    model, processor = load_janus(folder, device, dtype)
    return JanusModel(model, processor, instructions, name, model_hash)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> JanusModel:
    """Build a model with random weights, as "random:janus-pro-1b". Raises BadModel for an unknown geometry."""
    model, processor, model_hash = random_janus(name, device, dtype)
    return JanusModel(model, processor, general_chat(), name, model_hash)


def load_janus(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """The model of transformers, on its device, and its processor. Raises BadModel."""
    # On a full disk the progress bar fails to print, and then holds up the end of the process.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
        processor = JanusProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise BadModel(f"{folder}: transformers cannot load it: {error}") from error
    _check_weights(folder, model, dtype)
    nn.Module.to(model, device=device)
    return model, processor


def _check_weights(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    for key, weight in model.state_dict().items():
        if not is_finite(weight):
            raise BadModel(f"{folder}: its weight {key} holds NaN or infinity as {str(dtype).removeprefix('torch.')}")
