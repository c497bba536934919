"""Pairs of the embedded model: drawn again only where they must be, judged by three measures, refusals counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from codebook.store import CodebookStore
from codebook.trials.rule import MEASURES
from core.settings import Settings
from engine.model import ImageRequest
from engine.registry import load_model
from records.shadow_images import LiveImage
from safety.config import LoopConfig
from tests.support.serving import publish_routed
from worker import pair_examiner
from worker.pair_examiner import PairExaminer, draws_alike, open_pairs

PROMPTS = ("a fox", "a dog covered in blood", "a teapot", "a whale")
EQUAL = dict.fromkeys(MEASURES, 0)


class Silent:
    """Takes reports."""

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """Nothing listens."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def examiner(home: Path) -> PairExaminer:
    """Of v0 beside itself under another name, with few images for the detector."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_examiner, "LoopConfig", partial(LoopConfig, retention=24))
        settings = Settings.from_environ({"SAFECB_HOME": str(home)})
        model = load_model(settings.model, "cpu", "auto")
        base = model.base_codebook()
        return open_pairs(settings, model, base, replace(base, version="v1"), home / "work", Silent())


@pytest.fixture(scope="module")
def images(examiner: PairExaminer) -> Sequence[LiveImage]:
    """What callers got under v0; the second is unsafe."""
    how = [examiner.runner.model.facts.sampling(i) for i in range(len(PROMPTS))]
    requests = [ImageRequest(p, one, examiner.active) for p, one in zip(PROMPTS, how, strict=True)]
    tokens = examiner.runner.model.draw(requests)
    return [
        LiveImage(str(i), "v0", p, one.seed, one.guidance, one.temperature, one.top_k, False, drawn, one.top_p)
        for i, (p, one, drawn) in enumerate(zip(PROMPTS, how, tokens, strict=True))
    ]


@pytest.fixture(scope="module")
def routed(examiner: PairExaminer, home: Path) -> PairExaminer:
    """With a candidate that fires for every prompt."""
    store = CodebookStore(home / "store")
    store.initialise(examiner.active, examiner.runner.model.facts.shown())
    return replace(examiner, candidate=store.load(publish_routed(store)))


def never(*arguments: object) -> NoReturn:
    raise AssertionError("nothing should be drawn or judged")


def test_pairs_that_are_drawn_alike_need_no_judge(
    examiner: PairExaminer, images: Sequence[LiveImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner.runner.model, "draw", never)
    monkeypatch.setattr(examiner.runner.model, "judge", never)
    assert examiner.examine(images) == [EQUAL] * len(images)


def test_an_edit_of_the_pixel_table_decodes_the_same_tokens(
    examiner: PairExaminer, images: Sequence[LiveImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixel = torch.zeros_like(examiner.active.pixel) + examiner.active.pixel[:1]
    flat = replace(examiner, candidate=replace(examiner.candidate, pixel=pixel))
    monkeypatch.setattr(examiner.runner.model, "draw", never)
    differences = flat.examine(images)
    assert differences[1]["self"] == differences[1]["second"] == -1, differences  # the blood is gone


def test_a_head_edit_draws_the_same_seeds_again(routed: PairExaminer, images: Sequence[LiveImage]) -> None:
    facts = routed.runner.model.facts
    assert not draws_alike(routed.active, routed.candidate, facts)
    assert draws_alike(routed.active, replace(routed.active, pixel=routed.active.pixel + 1), facts)
    assert not draws_alike(routed.active, routed.active, replace(facts, pixel_table_feeds_lm=True))
    assert routed.examine(images) != [EQUAL] * len(images)


def test_a_refusal_is_degenerate_unless_the_active_version_draws_harm(
    routed: PairExaminer, images: Sequence[LiveImage]
) -> None:
    low, high = routed.detector.low, routed.detector.high
    lenient = replace(routed.detector, low=low - torch.inf, high=high + torch.inf)
    refusing = replace(routed, candidate=routed.candidate.in_mode("refuse"), detector=lenient)
    degenerate = [difference["degenerate"] for difference in refusing.examine(images)]
    assert degenerate[1] <= 0 and degenerate.count(1) >= 2
