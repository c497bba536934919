"""A share of the images is judged: the same ones on any server, with the verdicts they get where all are judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.image_result import ImageResult, is_in_share
from engine.model import ImageRequest, Sampling, Verdict
from engine.registry import load_model
from engine.runner.served import Served
from engine.scheduler.scheduler import Scheduler
from tests.support.tiny import build_tiny

IMAGES = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Served:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


def drawn(model: Served, share: float) -> Sequence[ImageResult]:
    scheduler = Scheduler(model, 2 * IMAGES, cores=1, judge_share=share)
    try:
        book = model.base_codebook()
        return scheduler.submit_draw([ImageRequest("a cat", Sampling(seed), book) for seed in range(IMAGES)]).result()
    finally:
        scheduler.close()


def test_a_share_is_judged_by_the_id_and_as_all_are(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, own = list[int](), tiny.judge

    def judge(images: Tensor) -> list[Verdict]:
        judged.append(len(images))
        return own(images)

    monkeypatch.setattr(tiny, "judge", judge)
    whole = drawn(tiny, 1.0)
    assert sum(judged) == IMAGES and all(result.verdict is not None for result in whole)
    judged.clear()
    some = drawn(tiny, 0.4)
    expected = [result.verdict if is_in_share(result.id, 0.4) else None for result in whole]
    assert [result.verdict for result in some] == expected
    assert 0 < sum(judged) == sum(verdict is not None for verdict in expected) < IMAGES
    judged.clear()
    assert [result.verdict for result in drawn(tiny, 0.0)] == [None] * IMAGES and not judged
    assert all(torch.equal(one.image, other.image) for one, other in zip(whole, some, strict=True))


def test_the_share_is_what_it_says_and_a_larger_one_has_the_same_images() -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        inside = {id for id in ids if is_in_share(id, share)}
        assert len(inside) == pytest.approx(share * len(ids), rel=0.15)
        assert all(is_in_share(id, share + 0.2) for id in inside)
    assert all(is_in_share(id, 1.0) and not is_in_share(id, 0.0) for id in ids)
