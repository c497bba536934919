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

from benchmarks.load import PROMPTS
from engine.model import ImageRequest
from engine.registry import PREFIX, load_model, load_parts
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served

WIDTHS = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 8, 32, 128)}


@dataclass(frozen=True)
class Work:
    """Work of drawing: `weights` that a step multiplies, `kv_numbers` that the KV cache holds per position and row.

    Those of a depth transformer count once a code, its projections too, which a cell needs once (1 % of VILA-U).
    """

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
    parts = load_parts(name, "meta", "bfloat16") if name.startswith(PREFIX) else load_parts(name, "cpu", "auto")
    backbone, head = parts.drawing.backbone, parts.head
    modules = [*backbone.layers, backbone.norm, *filter(None, (head.projection,))]
    weights = sum(p.numel() for module in modules for p in module.parameters())
    table = sum(p.numel() for p in head.table.parameters())
    if head.depth is not None:  # whose own table is looked up, not multiplied
        table += _numbers(head.depth) - parts.table.numel()
    attention: Any = backbone.layers[0].self_attn
    return Work(weights + table * parts.script.depth, 2 * len(backbone.layers) * attention.k_proj.out_features)


def _numbers(thing: Any) -> int:  # noqa: ANN401
    """Numbers in all tensors of an object of plain Python, and of what it holds; of a module in its parameters."""
    if isinstance(thing, torch.Tensor):
        return thing.numel()
    if hasattr(thing, "parameters"):
        return sum(p.numel() for p in thing.parameters())
    held = thing if isinstance(thing, list) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return sum(map(_numbers, held))


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
