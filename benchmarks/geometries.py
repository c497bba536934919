"""Published geometries with random weights: their floors on paper, and one image of each on a device beside its floor.

`python -m benchmarks.geometries` writes the floors alone, by sizes (nothing is loaded). With `--device cuda` each is
booted once, in bfloat16, and draws, decodes and judges one guided image: about five minutes on an H200. It ends after
MOST_S seconds: what has not begun by then is left out, and said. Written to docs/results/geometries-DEVICE.{json,md}.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.load import PROMPTS
from benchmarks.results import circumstances, table, write
from benchmarks.steps import Work, machine, work_of
from engine.family import families
from engine.model import ImageRequest
from engine.registry import PREFIX, load_model, load_parts
from engine.runner.batch import check_drawn
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served

BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}  # bytes a second, by their data sheets
ITEMSIZE, KV_ROWS = 2, 2  # bfloat16; a guided image
PROMPT = 32  # positions of a prompt
MOST_S = 420.0


def names() -> list[str]:
    """The random models of all families, by size of a step."""
    every = [PREFIX + geometry for family in families() for geometry in family.GEOMETRIES]
    return sorted(every, key=lambda name: work_of(name).weights)


def paper(name: str) -> dict[str, Any]:
    """Return the floors of one guided image: reading the weights and the rows' keys and values once a step."""
    parts, work = load_parts(name, "meta", "bfloat16"), work_of(name)
    steps = parts.script.steps
    row = {
        "model": name,
        "steps": steps,
        "read a step, billions": work.weights / 1e9,
        "GB a step": ITEMSIZE * work.weights / 1e9,
        "KV bytes a position": ITEMSIZE * work.kv_numbers,
        "KV GB a row": ITEMSIZE * work.kv_numbers * (PROMPT + steps) / 1e9,
    }
    return row | {f"{card}, s an image": floor_s(work, steps, pace) for card, pace in BANDWIDTH.items()}


def floor_s(work: Work, steps: int, bytes_per_s: float, itemsize: int = ITEMSIZE) -> float:
    """Seconds of a guided image at a memory bandwidth."""
    read = work.weights + KV_ROWS * (PROMPT + steps / 2) * work.kv_numbers
    return steps * itemsize * read / bytes_per_s


def measured(name: str, device: str) -> dict[str, Any]:
    """Boot a model and draw one guided image; seconds of each part, and its floor at the measured bandwidth."""
    start = time.perf_counter()
    model = load_model(name, device, "auto")
    batch = model.running_batch(KV_ROWS)
    batch.warm()
    _wait(model)
    booted = time.perf_counter()
    sequence = _sequence(model)
    batch.admit([sequence])
    while batch.sequences:
        batch.step()
    tokens = check_drawn(sequence.tokens[None])
    _wait(model)
    drawn = time.perf_counter()
    images = model.decode(tokens, model.base_codebook().pixel)
    _wait(model)
    decoded = time.perf_counter()
    (verdict,) = model.judge(images)
    judged = time.perf_counter()
    dtype = getattr(torch, model.facts.dtype)
    pace, _ = machine(model.device, dtype)
    floor = floor_s(work_of(name), batch.steps, pace, dtype.itemsize)
    return {
        "model": name,
        "boot s": booted - start,
        "image s": drawn - booted,
        "floor s": floor,
        "of the floor": (drawn - booted) / floor,
        "decode s": decoded - drawn,
        "judge s": judged - decoded,
        "GB held": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        "codes": len(set(tokens.flatten().tolist())),
        "verdict": verdict.score,
    }


def _sequence(model: Served) -> ImageSequence:
    sampling = model.facts.sampling(1)
    request = ImageRequest(PROMPTS[0], sampling, model.base_codebook())
    return ImageSequence(request, model.tokenize(request.prompt))


def _wait(model: Served) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def run(device: str, chosen: Sequence[str]) -> dict[str, Any]:
    """Measure the models one after the other, each alone on the device."""
    start, rows, left_out = time.perf_counter(), list[dict[str, Any]](), list[str]()
    about = circumstances(device)
    for name in chosen:
        if time.perf_counter() - start > MOST_S:
            left_out.append(name)
            continue
        rows.append(measured(name, device))
        print(rows[-1], flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"about": about, "measured": rows, "left_out": left_out, "seconds": time.perf_counter() - start}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="measure there too; floors alone without it")
    parser.add_argument("--models", help="names with commas between; all by default")
    options = parser.parse_args(arguments)
    chosen = options.models.split(",") if options.models else names()
    results: dict[str, Any] = {"paper": [paper(name) for name in chosen]}
    page = ["# Published geometries with random weights", "", "On paper:", "", *table(results["paper"])]
    if options.device is not None:
        results |= run(options.device, chosen)
        page += ["", f"Measured on {results['about']}:", "", *table(results["measured"])]
        page += ["", f"Left out: {', '.join(results['left_out']) or 'none'}; {results['seconds']:.0f} s in all."]
    print("\n".join(page))
    if options.device is not None:
        write(f"geometries-{options.device}", results, page)


if __name__ == "__main__":
    main()
