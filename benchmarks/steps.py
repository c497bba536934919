"""What a step costs on the CPU by the number of images drawn at once, against the floor that this machine sets.

The floor of a step is the longer of two times: reading the weights once at the memory's pace, and multiplying them at
the processor's. Both paces are measured here, just before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import JanusForConditionalGeneration

from benchmarks.load import PROMPTS
from engine.loading import find_model, load_model
from engine.model import ImageRequest
from engine.slots import Served

WIDTHS = (1, 2, 4, 8, 16)
STEPS = 48


def step_costs(name: str) -> list[dict[str, float]]:
    """For each number of images: milliseconds a step, milliseconds an image, and the share of the floor in [0, 1]."""
    model = load_model(name, "cpu", "float32")
    weights, (bytes_per_s, flops) = drawing_weights(name), machine()
    rows = []
    for images in WIDTHS:
        step_s = _step_s(model, images)
        floor_s = max(4 * weights / bytes_per_s, 2 * weights * 2 * images / flops)
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


def drawing_weights(name: str) -> int:
    """Weights that a step multiplies: the decoder layers and the image head."""
    model = JanusForConditionalGeneration.from_pretrained(find_model(name))
    used = [*model.model.language_model.layers.parameters(), *model.model.generation_head.parameters()]
    return sum(p.numel() for p in used)


def machine() -> tuple[float, float]:
    """Bytes a second that the memory gives, and float32 operations a second that the processor makes."""
    many = torch.ones(64 * 2**20)  # 256 MB: no cache holds it
    square = torch.randn(2048, 2048)
    return many.nbytes / _fastest(many.sum), 2 * 2048**3 / _fastest(lambda: square @ square)


def _fastest(work: Callable[[], object], times: int = 5) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _step_s(model: Served, images: int) -> float:
    book = model.base_codebook()
    slots = model.slots(2 * images)
    slots.admit([ImageRequest(PROMPTS[i % len(PROMPTS)], model.facts.sampling(i), book) for i in range(images)])
    taken = []
    for _ in range(STEPS):
        began = time.perf_counter()
        slots.step()
        taken.append(time.perf_counter() - began)
    return median(taken[8:])
