"""The batcher: one thread, many callers; nobody pays for a batch mate's mistake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codebook.errors import BadInput, Unavailable
from codebook.value import Codebook
from engine.batcher import Batcher, Drawn
from engine.loading import load_model
from engine.model import ImageModel, ImageRequest, Sampling
from tests.tiny import build_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


@pytest.fixture(scope="module")
def base(model: ImageModel) -> Codebook:
    return model.base_codebook()


@pytest.fixture
def batcher(model: ImageModel) -> Iterator[Batcher]:
    batcher = Batcher(model, max_batch=4, max_wait_s=0.05, queue_limit=16)
    yield batcher
    batcher.close()


def held(batcher: Batcher) -> tuple[threading.Event, Future[bool]]:
    """Keep the batcher's thread busy until the event is set; returns once it is."""
    begun, go = threading.Event(), threading.Event()

    def wait(model: ImageModel) -> bool:
        begun.set()
        return go.wait(60)

    future = batcher.submit(wait)
    assert begun.wait(60)
    return go, future


def test_calls_waiting_together_are_drawn_together_and_as_alone(
    batcher: Batcher, model: ImageModel, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    draw = model.draw

    def counting(requests: Sequence[ImageRequest], on_step: Callable[[int], None]) -> Tensor:
        sizes.append(len(requests))
        return draw(requests, on_step)

    monkeypatch.setattr(model, "draw", counting)
    go, _ = held(batcher)
    requests = [ImageRequest("a cat", Sampling(seed), base) for seed in range(6)]
    futures = [batcher.submit_draw([one]) for one in requests]
    go.set()
    found = [future.result(60)[0].tokens for future in futures]
    assert sizes == [4, 2]
    assert torch.equal(torch.stack(found), draw(requests))


def test_one_call_may_be_larger_than_a_batch(batcher: Batcher, base: Codebook) -> None:
    counts: list[tuple[int, int]] = []
    requests = [ImageRequest("a cat", Sampling(seed), base) for seed in range(10)]
    drawn = batcher.submit_draw(requests, lambda done, total: counts.append((done, total))).result(60)
    assert len(drawn) == 10
    assert counts == sorted(counts) and counts[-1] == (160, 160)


def test_a_bad_prompt_fails_alone(batcher: Batcher, base: Codebook) -> None:
    go, _ = held(batcher)
    bad = batcher.submit_draw([ImageRequest("<begin_of_image>", Sampling(1), base)])
    good = batcher.submit_draw([ImageRequest("a cat", Sampling(1), base)])
    go.set()
    assert len(good.result(60)) == 1
    with pytest.raises(BadInput):
        bad.result(60)


def test_a_cancelled_call_is_not_drawn(batcher: Batcher, base: Codebook) -> None:
    go, _ = held(batcher)
    future = batcher.submit_draw([ImageRequest("a cat", Sampling(1), base)])
    assert batcher.waiting() == 1
    assert future.cancel()
    go.set()
    assert batcher.submit(lambda model: 5).result(60) == 5
    assert batcher.waiting() == 0


def test_each_image_is_decoded_under_its_own_version(batcher: Batcher, model: ImageModel, base: Codebook) -> None:
    other = replace(base, version="v1", pixel=base.pixel.flip(0))
    go, _ = held(batcher)
    futures = [batcher.submit_draw([ImageRequest("a cat", Sampling(1), book)]) for book in (base, other)]
    go.set()
    one, two = (future.result(60)[0] for future in futures)
    assert torch.equal(one.tokens, two.tokens)
    for found, book in ((one, base), (two, other)):
        alone: Drawn = batcher.submit_draw([ImageRequest("a cat", Sampling(1), book)]).result(60)[0]
        assert torch.equal(found.image, alone.image)
    assert not torch.equal(one.image, two.image)


def test_a_full_queue_says_when_to_come_back(batcher: Batcher, base: Codebook) -> None:
    go, _ = held(batcher)
    requests = [ImageRequest("a cat", Sampling(seed), base) for seed in range(16)]
    future = batcher.submit_draw(requests)
    with pytest.raises(Unavailable) as refused:
        batcher.submit_draw(requests[:1])
    assert refused.value.retry_after >= 1
    go.set()
    assert len(future.result(60)) == 16


def test_closing_finishes_what_was_accepted(model: ImageModel, base: Codebook) -> None:
    batcher = Batcher(model)
    future = batcher.submit_draw([ImageRequest("a cat", Sampling(1), base)])
    batcher.close()
    assert len(future.result(0)) == 1
    with pytest.raises(Unavailable):
        batcher.submit(lambda model: None)


def test_a_failing_model_fails_the_calls_and_goes_on(
    batcher: Batcher, model: ImageModel, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model, "decode", lambda tokens, pixel: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.submit_draw([ImageRequest("a cat", Sampling(1), base)]).result(60)
    assert len(batcher.submit_draw([ImageRequest("a cat", Sampling(1), base)]).result(60)) == 1
