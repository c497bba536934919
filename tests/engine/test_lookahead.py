"""Lookahead: an image has the same tokens whatever the window, the batch and the kind of sampling, and fewer steps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from engine.image_result import PartialImage
from engine.model import ImageRequest, Sampling
from engine.registry import EMBEDDED, load_model
from engine.runner.batch import RunningBatch
from engine.runner.sequence import ImageSequence, kv_rows_of
from engine.runner.served import Served
from engine.runner.step.lookahead import Lookahead
from engine.runner.step.windows import MEASURED, ROWS, SLOW_S, TOKENS, Windows
from engine.scheduler.scheduler import Scheduler
from engine.unified.served_model import ServedModel
from tests.support.families.builders import BUILDERS
from tests.support.tiny import build_tiny

PROMPTS = ("a red fox", "a dog", "", "a long sentence about a red apple and a star on the table", "x")
FAMILIES = sorted(set(BUILDERS) - {"vila_u"})  # which draws several codes a step


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


def books(model: Served, after: int) -> list[Codebook]:
    """The model's own codebook; one that draws few codes, so that guesses are right; one whose probe may fire."""
    base, noise, facts = model.base_codebook(), torch.Generator().manual_seed(0), model.facts
    basis = torch.linalg.qr(torch.randn(1, facts.feature_dim, 2, generator=noise)).Q
    bias = torch.zeros(1, facts.codes)
    bias[:, torch.randperm(facts.codes, generator=noise)[:3]] = 30.0
    nothing = torch.zeros_like(basis)
    edit = HeadEdit(basis, torch.zeros(facts.feature_dim), nothing, nothing.mT, bias=bias)
    deaf = Router(torch.zeros(1, facts.hidden_dim), torch.tensor([-99.0]), torch.tensor([0]))
    probe = HalfwayProbe(after, Router(torch.randn(1, facts.feature_dim, generator=noise), torch.zeros(1), deaf.expert))
    probing = replace(edit, router=deaf, probe=probe)
    return [base, replace(base, version="v1", output=edit), replace(base, version="v2", output=probing)]


def requests(model: Served, count: int) -> list[ImageRequest]:
    """Requests of all kinds: greedy and sampled, guided and not, with and without limits, of all codebooks."""
    chance, codebooks = random.Random(1), books(model, model.facts.tokens // 2)
    return [
        ImageRequest(
            PROMPTS[n % len(PROMPTS)],
            Sampling(
                n,
                chance.choice([1.0, 2.0, 3.0]),
                chance.choice([0.0, 0.7, 1.0]),
                chance.choice([0, 0, 3]),
                chance.choice([1.0, 1.0, 0.5]),
            ),
            codebooks[n % len(codebooks)],
        )
        for n in range(count)
    ]


def sequence_of(model: Served, request: ImageRequest) -> ImageSequence:
    return ImageSequence(request, model.tokenize(request.prompt))


def draw(model: Served, drawn_for: Sequence[ImageRequest], kv_rows: int, window: int) -> tuple[Tensor, int]:
    """Draw images that join and leave at random, some dropped and begun anew; and the number of steps."""
    chance, batch, waiting = random.Random(kv_rows), model.running_batch(kv_rows, window), list(enumerate(drawn_for))
    tokens, steps = torch.zeros(len(drawn_for), model.facts.tokens, dtype=torch.int64), 0
    running: dict[ImageSequence, int] = {}
    while waiting or running:
        while waiting and chance.random() < 0.7 and kv_rows_of(waiting[0][1]) <= batch.free:
            number, request = waiting.pop(0)
            batch.admit([sequence := sequence_of(model, request)])
            running[sequence] = number
        if len(running) > 1 and chance.random() < 0.03:
            batch.drop(sequence := chance.choice(batch.sequences))
            waiting.append((running.pop(sequence), sequence.request))
        steps += 1
        for sequence in batch.step() if running else ():
            tokens[running.pop(sequence)] = sequence.tokens
    return tokens, steps


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_same_with_any_window_alone_and_in_any_batch(family: str, tmp_path: Path) -> None:
    model = load_model(str(BUILDERS[family](tmp_path)), "cpu", "float32")
    drawn_for = requests(model, 15)
    right, most = draw(model, drawn_for, 2, 1)
    assert len(set(map(tuple, right.tolist()))) > 9
    for window, kv_rows in ((2, 2), (16, 2), (8, 4), (8, 9)):
        tokens, steps = draw(model, drawn_for, kv_rows, window)
        assert torch.equal(tokens, right) and (kv_rows > 2 or steps < 0.9 * most)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_takes_fewer_than_two_thirds_of_the_steps(dtype: str) -> None:
    model = load_model(str(EMBEDDED), "cpu", dtype)
    base = model.base_codebook()
    drawn_for = [ImageRequest(PROMPTS[n], model.facts.sampling(n), base) for n in range(3)]
    right, most = draw(model, drawn_for, 2, 1)
    tokens, steps = draw(model, drawn_for, 2, 8)
    assert torch.equal(tokens, right) and steps < most * 2 / 3


def test_the_window_follows_the_load(tiny: Served) -> None:
    few_codes = books(tiny, 1)[1]
    drawn_for = [ImageRequest("x", Sampling(n, temperature=0.0), few_codes) for n in range(ROWS // 2)]
    batch = tiny.running_batch(ROWS, 8)
    batch.admit(sequences := [sequence_of(tiny, request) for request in drawn_for])
    for _ in range(4):
        batch.step()
        assert batch.accepted == 1.0
    for sequence in sequences[1:]:
        batch.drop(sequence)
    accepted = []
    while batch.sequences:
        batch.step()
        accepted.append(batch.accepted)
    assert max(accepted) > 1.0 and sum(accepted) == tiny.facts.tokens - 4
    assert torch.equal(sequences[0].tokens, draw(tiny, drawn_for[:1], 2, 1)[0][0])


def measured(monkeypatch: pytest.MonkeyPatch, most: int, cost: Callable[[int], float]) -> Windows:
    """Windows of a machine where a step of so many rows takes so long."""
    clock = [0.0]
    monkeypatch.setattr("engine.runner.step.windows.time.perf_counter", lambda: clock[0])

    def step(rows: int) -> None:
        clock[0] += cost(rows)

    windows = Windows(most)
    windows.measure(1, step)
    return windows


def test_the_window_follows_the_cost_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Windows(8).of(rows, 1) for rows in (1, 2, 3, 4, 8, 9)] == [8, 8, 5, 4, 2, 1]  # nothing is measured
    free = measured(monkeypatch, 16, lambda rows: 0.01)
    assert [free.of(rows, 1) for rows in (1, 2, 3, 4, 8, 9)] == [16, 8, 4, 4, 2, 1]
    assert free.of(2, 2) == 8  # with as many threads nothing is measured
    assert measured(monkeypatch, 4, lambda rows: 0.01).of(2, 1) == 4
    dear = measured(monkeypatch, 16, lambda rows: 0.001 * rows)
    assert [dear.of(rows, 1) for rows in (2, 3, 4, 8)] == [1] * 4
    some = measured(monkeypatch, 16, lambda rows: 0.01 if rows <= 8 else 0.03)
    assert [some.of(rows, 1) for rows in (2, 4)] == [4, 2]
    between = measured(monkeypatch, 16, lambda rows: 0.01 + 0.001 * rows)
    best = min((0.01 + 0.002 * window) / tokens for window, tokens in TOKENS.items() if window <= 8)
    chosen = between.of(2, 1)
    assert (0.01 + 0.002 * chosen) / TOKENS[chosen] == best
    slow = measured(monkeypatch, 8, lambda rows: 2 * SLOW_S if rows == MEASURED[0] else math.inf)
    assert slow.of(2, 1) == 8  # others were not measured: a step takes too long


def test_a_warm_batch_draws_the_same_whatever_it_has_measured(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_for = requests(tiny, 4)
    right, _ = draw(tiny, drawn_for, 4, 1)
    batches, running_batch = list[RunningBatch](), tiny.running_batch

    def warm(kv_rows: int, window: int) -> RunningBatch:
        batches.append(batch := running_batch(kv_rows, window))
        batch.warm()
        assert batch._lookahead._windows._costs.keys() == {1}
        return batch

    monkeypatch.setattr(tiny, "running_batch", warm)
    assert torch.equal(draw(tiny, drawn_for, 4, 8)[0], right) and batches


def test_previews_are_of_the_same_tokens(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Windows, "measure", lambda *_: None)
    parts: list[PartialImage] = []
    scheduler = Scheduler(tiny, 2, cores=1, lookahead=16)
    try:
        request = ImageRequest("x", Sampling(1, temperature=0.0), books(tiny, 1)[1])
        (result,) = scheduler.submit_draw([request], on_part=parts.append).result(60)
        assert scheduler.load().accepted > 1.0
    finally:
        scheduler.close()
    marks = [tiny.facts.tokens * quarter // 4 for quarter in (1, 2, 3)]
    assert [part.tokens.tolist() for part in parts] == [result.tokens[:mark].tolist() for mark in marks]


def test_a_guess_that_comes_to_nan_harms_nobody(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    image_lm, read = cast(ServedModel, tiny)._image_lm, Lookahead._next
    guesses: set[int] = set()

    def noting(lookahead: Lookahead, sequence: ImageSequence, window: int) -> list[int]:
        tokens = read(lookahead, sequence, window)
        guesses.update(tokens)
        return tokens

    monkeypatch.setattr(Lookahead, "_next", noting)
    base = tiny.base_codebook()
    drawn_for = [ImageRequest(PROMPTS[n], Sampling(n, 1.0 + n % 2), base) for n in range(4)]
    right, _ = draw(tiny, drawn_for, 4, 8)
    wrong = guesses - set(right.flatten().tolist())
    assert wrong
    embeddings = image_lm.codes.clone()
    embeddings[list(wrong)] = math.nan
    monkeypatch.setattr(image_lm, "codes", embeddings)
    assert torch.equal(draw(tiny, drawn_for, 4, 8)[0], right)


def test_there_is_no_lookahead_where_a_step_draws_several_codes(tmp_path: Path) -> None:
    model = load_model(str(BUILDERS["vila_u"](tmp_path)), "cpu", "float32")
    batch: RunningBatch = model.running_batch(2, 16)
    batch.admit([sequence_of(model, ImageRequest("x", Sampling(1), books(model, 1)[1]))])
    while batch.sequences:
        batch.step()
        assert batch.accepted == 1.0
