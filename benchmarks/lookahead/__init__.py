"""Lookahead against one token a step: steps by window and number of images, callers in closed loops, and equal tokens.

All windows in turn, in one run, with the embedded model on the CPU. `python -m benchmarks.lookahead` writes
docs/results/lookahead.{json,md}.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median
from typing import Any

import torch

from benchmarks.load import PROMPTS
from benchmarks.results import circumstances, table, write
from engine.model import ImageRequest, Sampling
from engine.registry import load_model
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served
from engine.runner.step.lookahead import LOOKAHEAD
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.thread_budget import count_cores

WINDOWS = {1: (1, 2, 3, 4, 6, 8), 2: (1, 2, 4), 4: (1, 2)}  # by number of images
CALLERS = {1: 12, 8: 32, 32: 64}  # images a round, by number of callers
ROUNDS, REQUESTS, ROWS = 5, 500, 32


def of_all_kinds(model: Served, count: int) -> list[ImageRequest]:
    """Return requests: greedy and sampled, guided and not, with and without top-k and top-p."""
    chance, base = random.Random(1), model.base_codebook()
    ways = ((1.0, 2.0, 3.5), (0.0, 0.7, 1.0), (0, 0, 50), (1.0, 1.0, 0.9))
    chosen = [[chance.choice(way) for way in ways] for _ in range(count)]
    return [
        ImageRequest(PROMPTS[seed % len(PROMPTS)], Sampling(seed, guidance, temperature, int(top_k), top_p), base)
        for seed, (guidance, temperature, top_k, top_p) in enumerate(chosen)
    ]


def drawn(model: Served, requests: Sequence[ImageRequest], kv_rows: int, window: int) -> tuple[torch.Tensor, int]:
    """Return the tokens of images that join one a step as long as there is room, and the number of steps."""
    batch, waiting = model.running_batch(kv_rows, window), list(enumerate(requests))
    tokens, numbers = torch.zeros(len(requests), model.facts.tokens, dtype=torch.int64), dict[ImageSequence, int]()
    steps = 0
    while waiting or numbers:
        if waiting and batch.free >= 2:
            number, request = waiting.pop(0)
            batch.admit([sequence := ImageSequence(request, model.tokenize(request.prompt))])
            numbers[sequence] = number
        for sequence in batch.step():
            tokens[numbers.pop(sequence)] = sequence.tokens
        steps += 1
    return tokens, steps


def differing(model: Served, count: int) -> dict[str, int]:
    """Return how many of the images differ from those drawn with one token a step, by way of drawing."""
    requests = of_all_kinds(model, count)
    right, _ = drawn(model, requests, ROWS, 1)
    ways = {"alone": (2, LOOKAHEAD), "among 2": (4, LOOKAHEAD), "among 4": (8, LOOKAHEAD), "window 16": (2, 16)}
    tokens = {name: drawn(model, requests, kv_rows, window)[0] for name, (kv_rows, window) in ways.items()}
    return {name: int((each != right).any(1).sum()) for name, each in tokens.items()}


def step_costs(model: Served) -> list[dict[str, float]]:
    """Return, per number of images and window: steps, ms a step, and the time beside one token a step."""
    rows, base = [], model.base_codebook()
    for images, windows in WINDOWS.items():
        times = defaultdict[int, list[tuple[float, int]]](list)
        for turn in range(ROUNDS):
            seeds = range(images * turn, images * (turn + 1))
            requests = [ImageRequest(PROMPTS[n % len(PROMPTS)], model.facts.sampling(n), base) for n in seeds]
            for window in windows:
                batch = model.running_batch(2 * images, window)
                batch.admit([ImageSequence(request, model.tokenize(request.prompt)) for request in requests])
                steps, began = 0, time.perf_counter()
                while batch.sequences:
                    batch.step()
                    steps += 1
                times[window].append((time.perf_counter() - began, steps))
        for window in windows:
            pairs = zip(times[window], times[1], strict=True)
            rows.append(
                {
                    "images": images,
                    "window": window,
                    "steps": mean(steps for _, steps in times[window]),
                    "step ms": 1e3 * median(took / steps for took, steps in times[window]),
                    "time / window 1": median(one / other for (one, _), (other, _) in pairs),
                }
            )
    return rows


def loops(model: Served) -> Iterator[dict[str, float]]:
    """Yield, per number of callers: median seconds of an image and images a second, as ratios to one token a step."""
    base = model.base_codebook()
    for callers, count in CALLERS.items():
        figures = defaultdict[int, list[tuple[float, float]]](list)
        for turn in range(ROUNDS):
            for window in (1, LOOKAHEAD):
                scheduler = Scheduler(model, ROWS, count_cores(), lookahead=window)

                def call(seed: int, scheduler: Scheduler = scheduler) -> float:
                    began, prompt = time.perf_counter(), PROMPTS[seed % len(PROMPTS)]
                    scheduler.submit_draw([ImageRequest(prompt, model.facts.sampling(seed), base)]).result()
                    return time.perf_counter() - began

                with ThreadPoolExecutor(callers) as pool:
                    began = time.perf_counter()
                    seconds = list(pool.map(call, range(count * turn, count * (turn + 1))))
                    figures[window].append((median(seconds), count / (time.perf_counter() - began)))
                scheduler.close()
        pairs = list(zip(figures[LOOKAHEAD], figures[1], strict=True))
        yield {
            "callers": callers,
            "p50 ms, window 1": 1e3 * median(seconds for seconds, _ in figures[1]),
            f"p50 ms, {LOOKAHEAD}": 1e3 * median(seconds for seconds, _ in figures[LOOKAHEAD]),
            "latency, ratio": median(one / other for (one, _), (other, _) in pairs),
            "images/s, ratio": median(one / other for (_, one), (_, other) in pairs),
        }


def page(results: dict[str, Any]) -> list[str]:
    """Return the page of the results."""
    around = results["circumstances"]
    return [
        "# Results: lookahead",
        "",
        f"`python -m benchmarks.lookahead`, {around['time']}: {around['device']}, load {around['load']} at the start, "
        f"torch {around['torch']}.",
        "Embedded model, float32, guidance 2, its own temperature; windows in turn, medians of "
        f"{ROUNDS} rounds. A bar: below 1.",
        "Where the layers of a step are in C, rows that guess cost what they compute: [how windows are",
        "chosen](../explanation/engine.md#lookahead).",
        "",
        "## Steps",
        "",
        *table(results["steps"]),
        "",
        "## Callers in a closed loop, decoding and judging included",
        "",
        f"A server takes the window that it has measured to be the fastest, {LOOKAHEAD} at most.",
        "",
        *table(results["callers"]),
        "",
        "## Equal tokens",
        "",
        f"Images that differ from those of one token a step, of {results['requests']} of all kinds of sampling:",
        "",
        *table([results["differing"]]),
    ]


def main() -> None:
    """Measure and write the page."""
    results: dict[str, Any] = {"circumstances": circumstances(), "requests": REQUESTS}
    model = load_model("embedded", "cpu", "float32")
    model.running_batch(ROWS).warm()
    results["steps"] = step_costs(model)
    results["callers"] = list(loops(model))
    results["differing"] = differing(model, REQUESTS)
    write("lookahead", results, page(results))
