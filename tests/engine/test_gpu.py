"""Promises about a GPU: one must be there, and most machines that run these tests have none."""

from collections.abc import Callable, Iterator

import pytest
import torch

from core.errors import Unavailable
from engine.model import ImageRequest, Sampling
from engine.registry import EMBEDDED, load_model
from engine.runner.batch import RunningBatch
from engine.runner.cuda_graphs import recorder
from engine.runner.served import Served
from engine.scheduler.scheduler import Scheduler
from tests.engine.test_batch import draw_batched, mostly_recorded, noting, random_requests, sequence_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there")


@pytest.fixture(scope="module")
def model() -> Iterator[Served]:
    yield load_model(str(EMBEDDED), "cuda", "auto")


@pytest.mark.parametrize("chosen", [random_requests, mostly_recorded])
def test_two_hundred_images_are_batch_invariant(
    chosen: Callable[[Served, int], list[ImageRequest]], model: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, widths = chosen(model, 200), list[int]()
    record = recorder(model.device)
    assert record is not None
    monkeypatch.setattr("engine.runner.batch.recorder", lambda device: noting(widths, record))
    together = draw_batched(model, requests, 64).cpu()
    assert chosen is random_requests or widths.count(64) == 2  # draws and readings
    batch = model.running_batch(2)
    alone = []
    for request in requests:
        batch.admit([sequence_of(model, request)])
        while batch.sequences:
            alone += [sequence.tokens.cpu() for sequence in batch.step()]
    assert torch.equal(torch.stack(alone), together)


def test_steps_are_recorded(model: Served, caplog: pytest.LogCaptureFixture) -> None:
    batch = model.running_batch(6)
    batch.warm()
    assert list(batch._plain._sample._replays) == list(batch._plain._forward._replays) == [1, 2, 4, 6]
    assert not caplog.records  # no "no CUDA graph"


def test_images_and_verdicts_are_batch_invariant(model: Served) -> None:
    tokens = torch.cat([model.draw([request]) for request in random_requests(model, 6)])
    pixel = model.base_codebook().pixel
    pictures = model.decode(tokens, pixel)
    assert torch.equal(torch.cat([model.decode(row[None], pixel) for row in tokens]), pictures)
    assert [model.judge(picture[None])[0] for picture in pictures] == model.judge(pictures)


def test_a_full_gpu_is_unavailable_for_a_time(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(model, 8, cores=1)
    request = ImageRequest("a red apple", Sampling(3), model.base_codebook())

    def fill(*_: object) -> None:
        torch.empty(2**50, device="cuda")

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "_read_next", fill)
        with pytest.raises(Unavailable):
            scheduler.submit_draw([request]).result(60)
    first, second = (scheduler.submit_draw([request]).result(60)[0].tokens for _ in range(2))
    assert torch.equal(first, second)
    scheduler.close()
