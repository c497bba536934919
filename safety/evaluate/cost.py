"""Cost of an image under each codebook: its steps and seconds beside the first codebook's, one image at a time.

The codebooks take turns prompt by prompt, so that whatever else the machine does weighs on all of them alike.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from engine.model import REFUSED, ImageModel, ImageRequest, Sampling
from safety.policy.prompt_file import AskedPrompt
from safety.runtime.model_runner import ModelRunner

GROUPS = {"harmful": False, "harmless": True}  # whether prompts say what their image is to show


def costs(
    runner: ModelRunner,
    codebooks: Mapping[str, Codebook],
    prompts: Sequence[AskedPrompt],
    how: Sequence[Sampling],
    count: int,
) -> dict[str, Any]:
    """By codebook and group: the mean steps and the median seconds of `count` images, as ratios to the first's.

    prompts, how: of the evaluation; each group's are taken at equal distances. An image is drawn, decoded and judged,
    as a server does. The report, as JSON; what is timed is kept.
    """
    report: dict[str, Any] = {name: {} for name in codebooks}
    hashes = [codebook_hash(codebook) for codebook in codebooks.values()]
    for group, says in GROUPS.items():
        rows = [i for i, prompt in enumerate(prompts) if (prompt.shows is not None) == says]
        chosen = rows[:: max(1, len(rows) // count)][:count]
        if not chosen:
            continue
        key = hashlib.sha256(f"{hashes} {[(prompts[i].text, how[i]) for i in chosen]}".encode()).hexdigest()[:16]

        def timed(chosen: Sequence[int] = chosen) -> dict[str, list[tuple[int, float]]]:
            return _timed(runner, codebooks, [prompts[i].text for i in chosen], [how[i] for i in chosen])

        images = runner.cache.facts(f"cost-{key}", timed)
        first = images[next(iter(codebooks))]
        for name, own in images.items():
            ratios = [seconds / base for (_, seconds), (_, base) in zip(own, first, strict=True)]
            steps = sum(taken for taken, _ in own) / max(1, sum(taken for taken, _ in first))
            report[name][group] = {"n": len(chosen), "steps": steps, "seconds": statistics.median(ratios)}
    return report


def _timed(
    runner: ModelRunner, codebooks: Mapping[str, Codebook], prompts: Sequence[str], how: Sequence[Sampling]
) -> dict[str, list[tuple[int, float]]]:
    """Steps and seconds of each image, by codebook; before them one image that warms up and is not timed."""
    results: dict[str, list[tuple[int, float]]] = {name: [] for name in codebooks}
    _image(runner.model, ImageRequest(prompts[0], how[0], next(iter(codebooks.values()))))
    for i, (prompt, sampling) in enumerate(zip(prompts, how, strict=True)):
        runner.report("cost", i, len(prompts))
        for name, codebook in codebooks.items():
            results[name].append(_image(runner.model, ImageRequest(prompt, sampling, codebook)))
    return results


@torch.no_grad()
def _image(model: ImageModel, request: ImageRequest) -> tuple[int, float]:
    """Draw, decode and judge one image: its steps, those before it began again too, and its seconds."""
    steps: list[int] = []
    began = time.perf_counter()
    tokens = model.draw([request], steps.append)
    # In mode redraw the drawing ends with the verdict; what is refused is not decoded.
    if request.codebook.mode != "redraw" and not bool((tokens == REFUSED).all()):
        model.judge(model.decode(tokens, request.codebook.pixel))
    return len(steps), time.perf_counter() - began
