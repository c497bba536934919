"""Decode-step cost by batch size, against the roofline of the machine.

The floor of a step is the longer of two times: reading the weights once and the KV cache of each row at memory
bandwidth, and the multiplications at the peak rate. Both rates are measured first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import JanusForConditionalGeneration

from benchmarks.load import PROMPTS
from engine.families.janus.random_model import random_janus
from engine.model import ImageRequest
from engine.registry import PREFIX, find_model, load_model
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served

WIDTHS = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 8, 32, 128)}


@dataclass(frozen=True)
class Work:
    """Work of drawing: `weights` that a step multiplies, `kv_numbers` that the KV cache holds per position and row."""

    weights: int
    kv_numbers: int


def step_costs(name: str, device: str) -> list[dict[str, float]]:
    """Return, per number of images: milliseconds per step and image, the floor, and the share of it in [0, 1]."""
    model, dtype = load_model(name, device, "auto"), torch.float32 if device == "cpu" else torch.bfloat16
    work, (bytes_per_s, flops) = work_of(name), machine(model.device, dtype)
    rows = []
    for images in (images for images in WIDTHS[device] if 2 * images <= model.kv_rows()):
        step_s, positions = _step_s(model, images)
        read = dtype.itemsize * (work.weights + 2 * images * positions * work.kv_numbers)
        floor_s = max(read / bytes_per_s, 2 * work.weights * 2 * images / flops)
        rows.append(
            {
                "images": images,
                "step_ms": 1e3 * step_s,
                "image_ms": 1e3 * step_s * model.facts.tokens / images,
                "floor_ms": 1e3 * floor_s,
                "share_of_floor": floor_s / step_s,
            }
        )
    return rows


def work_of(name: str) -> Work:
    """Return the weights of the decoder layers and the image head, and the keys and values."""
    if name.startswith(PREFIX):
        model, _, _ = random_janus(name, torch.device("meta"), torch.bfloat16)
    else:
        model = JanusForConditionalGeneration.from_pretrained(find_model(name))
    text: Any = model.config.text_config
    used = [*model.model.language_model.layers.parameters(), *model.model.generation_head.parameters()]
    return Work(sum(p.numel() for p in used), 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim)


def machine(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the memory bandwidth in bytes/s, and the peak rate of the device in FLOP/s for this dtype."""
    many = torch.ones(64 * 2**20, device=device)  # 256 MB: no cache holds it
    other = torch.empty_like(many)
    pace = max(many.nbytes / _fastest(many.sum, device), 2 * many.nbytes / _fastest(lambda: other.copy_(many), device))
    side = 2048 if device.type == "cpu" else 8192
    square = torch.randn(side, side, device=device).to(dtype)
    return pace, 2 * side**3 / _fastest(lambda: square @ square, device)


def _fastest(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    return min(_timed(work, device) for _ in range(times))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the work, with synchronisation on a GPU."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step_s(model: Served, images: int) -> tuple[float, float]:
    """Return the mean seconds of a step over whole images, and the mean number of KV positions of a row."""
    book = model.base_codebook()
    batch = model.running_batch(2 * images)
    batch.warm()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(images)]
    requests = [ImageRequest(prompt, model.facts.sampling(i), book) for i, prompt in enumerate(prompts)]
    sequences = [ImageSequence(request, model.tokenize(request.prompt)) for request in requests]
    batch.admit(sequences)
    positions = sum(len(sequence.prompt_ids) for sequence in sequences) / images + model.facts.tokens / 2

    def draw() -> None:
        while batch.sequences:
            batch.step()

    return _timed(draw, model.device) / model.facts.tokens, positions
