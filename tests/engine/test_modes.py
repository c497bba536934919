"""Modes of a version: images that fire are edited, drawn for the model's rewrite, or refused; others never change."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadNumber, Busy, Refused
from engine.image_result import ImageResult
from engine.model import REFUSED, ImageRequest, Sampling, Verdict
from engine.registry import load_model
from engine.runner.served import Served
from engine.scheduler.scheduler import Scheduler
from tests.support.serving import wait_for
from tests.support.tiny import build_tiny

HARMFUL, HARMLESS, REWRITE, STUBBORN = "a red pistol", "a cat", "a red toy", "a pistol"


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The tiny model; its rewrites, which would be noise, are scripted."""
    torch.set_num_threads(1)
    served = load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")
    rewrites = {HARMFUL: REWRITE, STUBBORN: f"{HARMFUL} again"}

    def rewrite(prompts: Sequence[str], attempt: int = 0) -> list[str]:
        return [rewrites.get(prompt, prompt) for prompt in prompts]

    monkeypatch.setattr(served, "rewrite", rewrite)
    return served


@pytest.fixture
def scheduler(model: Served) -> Iterator[Scheduler]:
    scheduler = Scheduler(model, 8, cores=1)
    yield scheduler
    scheduler.close()


def fires_on(model: Served, *prompts: str, silent: Sequence[str]) -> Codebook:
    """A codebook whose router fires for some prompts and not for others, and whose edit changes much."""
    states = [model.prompt_states([prompt])[0][0, -1] for prompt in (*prompts, *silent)]
    targets = torch.tensor([1.0] * len(prompts) + [-1.0] * len(silent))
    weight = torch.linalg.lstsq(torch.stack(states), targets[:, None]).solution[:, 0]
    router = _LastState(weight[None] * 50, torch.tensor([0.0]), torch.tensor([0]))
    width = model.facts.feature_dim
    basis = torch.linalg.qr(torch.randn(1, width, width // 2, generator=torch.Generator().manual_seed(0))).Q
    nothing = torch.zeros(1, width, 1)
    book = replace(model.base_codebook(), output=HeadEdit(basis, nothing[0, :, 0], nothing, nothing.mT, router))
    assert book.output is not None
    for prompt in (*prompts, *silent):
        assert book.output.experts(*model.prompt_states([prompt])) == [(0,) if prompt in prompts else ()]
    return book


class _LastState(Router):
    """Reads the last state alone, which a least-squares fit separates exactly."""

    def scores(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        last = mask.sum(1) - 1
        rows = torch.arange(len(states))
        return super().scores(states[rows, last][:, None], mask[rows, last][:, None])


@pytest.fixture
def book(model: Served) -> Codebook:
    return fires_on(model, HARMFUL, STUBBORN, f"{HARMFUL} again", silent=(HARMLESS, REWRITE))


def asked(book: Codebook, *prompts: str, seed: int = 3) -> list[ImageRequest]:
    return [ImageRequest(prompt, Sampling(seed), book) for prompt in prompts]


def served(scheduler: Scheduler, requests: Sequence[ImageRequest]) -> list[ImageResult]:
    return scheduler.submit_draw(requests).result(60)


def test_a_prompt_that_fires_is_drawn_as_its_rewrite(model: Served, scheduler: Scheduler, book: Codebook) -> None:
    rewriting = book.in_mode("rewrite")
    harmful, harmless = served(scheduler, asked(rewriting, HARMFUL, HARMLESS))
    toy, cat = model.draw(asked(model.base_codebook(), REWRITE, HARMLESS))
    assert torch.equal(harmful.tokens, toy) and torch.equal(harmless.tokens, cat)
    assert (harmful.revised, harmful.experts) == (REWRITE, ()) and harmless.revised is None
    assert harmful.request.prompt == HARMFUL  # what the caller wrote


def test_a_rewrite_that_fires_is_edited_and_so_is_a_prompt_that_stays(
    model: Served, scheduler: Scheduler, book: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewriting = book.in_mode("rewrite")
    (image,) = served(scheduler, asked(rewriting, STUBBORN))
    assert (image.revised, image.experts) == (f"{HARMFUL} again", (0,))
    assert torch.equal(image.tokens, model.draw(asked(book, f"{HARMFUL} again"))[0])
    for answer in (HARMFUL, "  ", "<begin_of_image>", "word " * 400):
        monkeypatch.setattr(model, "rewrite", lambda prompts, attempt=0, answer=answer: [answer] * len(prompts))
        (image,) = served(scheduler, asked(rewriting, HARMFUL))
        assert (image.revised, image.experts) == (None, (0,))
        assert torch.equal(image.tokens, model.draw(asked(book, HARMFUL))[0])


def test_the_loop_draws_what_the_server_draws(model: Served, scheduler: Scheduler, book: Codebook) -> None:
    requests = asked(book.in_mode("rewrite"), HARMFUL, HARMLESS, STUBBORN) + asked(book, HARMFUL)
    images = served(scheduler, requests)
    assert torch.equal(torch.stack([image.tokens for image in images]), model.draw(requests))


def test_a_prompt_that_fires_is_refused_and_others_are_drawn(
    model: Served, scheduler: Scheduler, book: Codebook
) -> None:
    refusing = replace(book.in_mode("refuse"), version="v7")
    with pytest.raises(Refused, match="v7 refuses"):
        served(scheduler, asked(refusing, HARMFUL))
    (image,) = served(scheduler, asked(refusing, HARMLESS))
    drawn = model.draw(asked(refusing, HARMFUL, HARMLESS))
    assert bool((drawn[0] == REFUSED).all()) and torch.equal(drawn[1], image.tokens)


def test_an_image_that_fires_halfway_is_refused_and_leaves_its_rows(
    model: Served, scheduler: Scheduler, book: Codebook
) -> None:
    width = model.facts.feature_dim
    deaf = Router(torch.zeros(1, model.facts.hidden_dim), torch.tensor([-99.0]), torch.tensor([0]))
    probe = HalfwayProbe(6, Router(torch.zeros(1, width), torch.tensor([1.0]), torch.tensor([0])))
    assert book.output is not None
    halfway = replace(book, output=replace(book.output, router=deaf, probe=probe, mode="refuse"))
    plain = scheduler.submit_draw(asked(model.base_codebook(), HARMLESS))
    with pytest.raises(Refused):
        served(scheduler, asked(halfway, HARMLESS))
    assert torch.equal(plain.result(60)[0].tokens, model.draw(asked(model.base_codebook(), HARMLESS))[0])
    wait_for("all rows are free", lambda: scheduler.load().rows == 0)
    assert bool((model.draw(asked(halfway, HARMLESS)) == REFUSED).all())


def test_a_halfway_probe_edits_in_mode_rewrite(model: Served, scheduler: Scheduler, book: Codebook) -> None:
    deaf = Router(torch.zeros(1, model.facts.hidden_dim), torch.tensor([-99.0]), torch.tensor([0]))
    probes = Router(torch.zeros(1, model.facts.feature_dim), torch.tensor([1.0]), torch.tensor([0]))
    assert book.output is not None
    halfway = replace(book, output=replace(book.output, router=deaf, probe=HalfwayProbe(6, probes), mode="rewrite"))
    (image,) = served(scheduler, asked(halfway, HARMFUL))
    assert (image.revised, image.experts) == (None, (0,))
    assert torch.equal(image.tokens, model.draw(asked(book, HARMFUL))[0])


@pytest.fixture
def goes_on(model: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lets rewrites go on, which wait until it is set."""
    goes_on, rewrite = threading.Event(), model.rewrite

    def slow(prompts: Sequence[str], attempt: int = 0) -> list[str]:
        assert goes_on.wait(60)
        return rewrite(prompts, attempt)

    monkeypatch.setattr(model, "rewrite", slow)
    yield goes_on
    goes_on.set()


def test_others_are_drawn_while_a_prompt_is_rewritten_and_a_stop_waits_for_it(
    model: Served, book: Codebook, goes_on: threading.Event
) -> None:
    scheduler = Scheduler(model, 8, cores=1)
    harmful = scheduler.submit_draw(asked(book.in_mode("rewrite"), HARMFUL))
    other = scheduler.submit_draw(asked(book, HARMLESS))
    wait_for("the other image is drawn", lambda: scheduler.load().finishing == 1)
    stop = threading.Thread(target=scheduler.close)
    stop.start()
    goes_on.set()
    stop.join(60)
    assert not stop.is_alive()
    assert harmful.result(0)[0].revised == REWRITE and other.result(0)


def test_a_rewrite_that_fails_is_the_error_of_its_image(
    model: Served, scheduler: Scheduler, book: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(prompts: Sequence[str], attempt: int = 0) -> list[str]:
        raise BadNumber("rewrite")

    monkeypatch.setattr(model, "rewrite", fails)
    with pytest.raises(BadNumber, match="rewrite"):
        served(scheduler, asked(book.in_mode("rewrite"), HARMFUL))
    assert served(scheduler, asked(book, HARMLESS))


def test_prompts_that_are_rewritten_fill_the_queue_as_others_do(
    model: Served, book: Codebook, goes_on: threading.Event
) -> None:
    scheduler, accepted = Scheduler(model, 8, cores=1, queue_limit=4), list[Any]()
    try:
        with pytest.raises(Busy):
            for seed in range(60):
                accepted.append(scheduler.submit_draw(asked(book.in_mode("rewrite"), HARMFUL, seed=seed)))
                wait_for("it is taken or waits", lambda: scheduler.waiting() == 0 or len(accepted) > 8)
        assert 8 <= len(accepted) <= 20
        goes_on.set()
        assert {future.result(60)[0].revised for future in accepted} == {REWRITE}
    finally:
        goes_on.set()
        scheduler.close()


def test_a_prompt_whose_rewrite_fails_harms_no_other(
    model: Served, scheduler: Scheduler, book: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, goes_on, rewrite = threading.Event(), threading.Event(), model.rewrite

    def fails(prompts: Sequence[str], attempt: int = 0) -> list[str]:
        held.set()
        assert goes_on.wait(60)
        if STUBBORN in prompts:
            raise BadNumber("rewrite")
        return rewrite(prompts, attempt)

    monkeypatch.setattr(model, "rewrite", fails)
    futures = [scheduler.submit_draw(asked(book.in_mode("rewrite"), prompt)) for prompt in (HARMFUL, STUBBORN)]
    assert held.wait(60)
    more = [scheduler.submit_draw(asked(book.in_mode("rewrite"), prompt, seed=9)) for prompt in (HARMFUL, STUBBORN)]
    goes_on.set()
    for good, bad in (futures, more):
        assert good.result(60)[0].revised == REWRITE
        with pytest.raises(BadNumber):
            bad.result(60)


class Strict:
    """The model's judge, to whom the images of some tokens are unsafe."""

    def __init__(self, model: Served) -> None:
        self._model, self._judge, self._unsafe = model, model.judge, list[torch.Tensor]()

    def against(self, request: ImageRequest, *draws: int) -> None:
        """Judge what is drawn for a request unsafe, in those of its draws."""
        pixel = request.codebook.pixel
        for draw in draws:
            once = replace(request, sampling=request.sampling.redrawn(draw), codebook=request.codebook.in_mode("edit"))
            self._unsafe.append(self._model.decode(self._model.draw([once]), pixel)[0])

    def judge(self, images: torch.Tensor) -> list[Verdict]:
        flags = [any(torch.equal(image, other) for other in self._unsafe) for image in images]
        return [Verdict((float(flag),) * 3, "gore" if flag else "none") for flag in flags]


@pytest.fixture
def strict(model: Served, monkeypatch: pytest.MonkeyPatch) -> Strict:
    strict = Strict(model)
    monkeypatch.setattr(model, "judge", strict.judge)
    return strict


def test_an_image_that_is_judged_unsafe_is_drawn_again_and_only_that_one(
    model: Served, scheduler: Scheduler, book: Codebook, strict: Strict
) -> None:
    requests = asked(book.in_mode("redraw"), HARMFUL, HARMLESS, STUBBORN)
    strict.against(requests[0], 0, 1)
    strict.against(requests[1], 0)
    harmful, harmless, _ = images = served(scheduler, requests)
    assert [image.redraws for image in images] == [2, 1, 0]
    assert (harmful.experts, harmless.experts) == ((0,), ())  # the verdict fires where router and probe are silent
    assert {image.request.sampling.seed for image in images} == {3}  # what the caller knows gives the image again
    seeds = [3, Sampling(3).redrawn(1).seed, Sampling(3).redrawn(2).seed]
    assert len(set(seeds)) == 3
    again = [model.draw(asked(book, prompt, seed=seeds[n]))[0] for prompt, n in ((HARMFUL, 2), (HARMLESS, 1))]
    assert torch.equal(harmful.tokens, again[0]) and torch.equal(harmless.tokens, again[1])
    assert torch.equal(torch.stack([image.tokens for image in images]), model.draw(requests))  # the loop draws the same
    assert torch.equal(served(scheduler, requests[:1])[0].tokens, harmful.tokens)


def test_an_image_that_stays_unsafe_is_refused_and_nobody_saw_a_part_of_it(
    model: Served, scheduler: Scheduler, book: Codebook, strict: Strict
) -> None:
    requests, parts = asked(replace(book.in_mode("redraw"), version="v7"), HARMFUL, HARMLESS), list[Any]()
    strict.against(requests[0], 0, 1, 2)
    with pytest.raises(Refused, match="v7 refuses"):
        scheduler.submit_draw(requests[:1], on_part=parts.append).result(60)
    assert parts == [] and served(scheduler, requests[1:])[0].redraws == 0
    drawn = model.draw(requests)
    assert bool((drawn[0] == REFUSED).all()) and not bool((drawn[1] == REFUSED).any())
    wait_for("all rows are free", lambda: scheduler.load().rows == 0)


def test_a_stop_waits_for_an_image_that_is_drawn_again(model: Served, book: Codebook, strict: Strict) -> None:
    scheduler = Scheduler(model, 8, cores=1)
    requests = asked(book.in_mode("redraw"), HARMFUL)
    strict.against(requests[0], 0, 1)
    future = scheduler.submit_draw(requests)
    scheduler.close()
    assert future.result(0)[0].redraws == 2
