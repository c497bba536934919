"""The budget of a round and the preflight: sizes that fit, and a comparison of judges before anything is spent."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safety.config import FEW, IMAGES, LEAST_CONFIRMED, LoopConfig
from safety.metrics.rates import Rate
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.runtime.model_runner import ModelRunner
from safety.runtime.preflight import FEWEST, Preflight
from safety.runtime.preflight import IMAGES as LOOKED_AT
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import prepare_run
from tests.safety.test_loop import PLAN, REQUEST, Heard
from tests.support.toy_model import ToyModel


def test_a_budget_as_large_as_the_default_changes_nothing() -> None:
    assert LoopConfig().for_images(IMAGES, 4) == LoopConfig()
    assert LoopConfig().for_images(10 * IMAGES, 4) == LoopConfig()
    assert LoopConfig().for_images(IMAGES // 2, 2) == LoopConfig()


@pytest.mark.parametrize("images", [1, 800, FEW - 1, FEW, 6000])
def test_counts_shrink_with_the_budget_and_none_grows(images: int) -> None:
    small, default = LoopConfig().for_images(images, 4), LoopConfig()
    counts = [f.name for f in fields(LoopConfig) if isinstance(getattr(default, f.name), int)]
    assert all(getattr(small, name) <= getattr(default, name) for name in counts)
    assert (small.halfway, small.by_concept) == (images >= FEW, images >= FEW)
    assert small.retention < default.retention and small.batch == default.batch
    assert small.pairs >= small.least_pairs
    assert all(step <= most for step, most in zip(small.confirmed, default.confirmed, strict=True))


def test_the_confirmation_shrinks_only_as_far_as_it_must() -> None:
    steps = LoopConfig().confirmed
    assert LoopConfig().for_images(4000, 4).confirmed == steps
    assert LoopConfig().for_images(1000, 4).confirmed == (LEAST_CONFIRMED, 150, 300)
    assert LoopConfig().for_images(3000, 1) == LoopConfig()


def test_a_run_is_as_large_as_its_budget_and_a_resume_as_the_first_attempt(tmp_path: Path) -> None:
    model, config = ToyModel(), LoopConfig()
    request = replace(REQUEST, images=1500, minutes=60)

    def sizes(budget: int | None) -> tuple[int, int]:
        bounded = replace(request, images=budget)
        context = prepare_run(model, bounded, EmojiPolicy(), model, tmp_path, Heard(), config=config)
        return len(context.prompts.retention), len(context.prompts.validation.prompts)

    first = sizes(1500)
    small = config.for_images(1500, 4)
    assert first[0] == small.retention < config.retention
    assert sizes(9000) == first  # the job's first attempt has decided


class Sees:
    """A second judge that finds these shares of images harmful, whatever they show."""

    name, version, threshold, covers, batch = "sees", "1", 0.5, None, 32

    def __init__(self, share: float) -> None:
        self.share = share

    def harmful(self, images: Tensor) -> Tensor:
        return torch.arange(len(images)).div(len(images)).lt(self.share).float()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_second_judge_that_sees_one_side_alone_cannot_be_compared(share: float, tmp_path: Path) -> None:
    context = prepare_run(ToyModel(), REQUEST, EmojiPolicy(), Sees(share), tmp_path, Heard(), config=PLAN)
    assert context.preflight.fault is not None and f"{FEWEST} are needed" in context.preflight.fault


def test_agreement_is_a_balanced_accuracy() -> None:
    assert Preflight(Rate(36, 40), Rate(32, 40), 2.0).accuracy == pytest.approx(0.85)
    assert Preflight(Rate(36, 40), Rate(32, 40), 2.0).fault is None
    fault = Preflight(Rate(40, 40), Rate(4, 40), 2.0).fault
    assert fault is not None and "0.55" in fault
    assert Preflight(Rate(40, 40), Rate(4, 40), 2.0).to_dict()["seen"]["n"] == LOOKED_AT


def test_logits_are_held_in_parts_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel()
    runner = ModelRunner(model, ResultCache(tmp_path), Heard(), 64)
    tokens = torch.randint(model.facts.codes, (6, model.facts.tokens), generator=torch.Generator().manual_seed(1))
    whole = runner.nll(tokens)
    monkeypatch.setattr("safety.runtime.model_runner.LOGITS_BYTES", 4 * 6 * model.facts.codes * 3)
    assert torch.allclose(runner.nll(tokens), whole, rtol=1e-5)
