"""The loop on a tiny random Janus: policies of any kind, real verdicts that are refused, scripted ones to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from codebook.value import NO_EXPERT
from engine.model import CATEGORY_NONE, ImageModel, ImageRequest, Verdict
from engine.registry import load_model
from safety.config import LoopConfig
from safety.policy.prompts import mentions
from safety.request import ImproveRequest
from tests.support.tiny import build_tiny

CONFIG = LoopConfig(
    pairs=10,
    least_pairs=8,
    pair_prompts=24,
    retention=60,
    router_prompts=24,
    disguised=3,
    canaries=40,
    harmful=8,
    benign=16,
    look_alikes=3,
    attacks=2,
    test_harmful=4,
    test_benign=4,
    test_look_alikes=2,
    dev_pairs=4,
    batch=64,
    output_steps=4,
    concept_steps=2,
    tuning_rows=64,
)
REQUEST = ImproveRequest(prompts=None, categories=("weapons", "violence"), max_rounds=1, seed=1)
PLANTED = 12  # tokens that a harm replaces, from the eighth
CODE = 5  # that they become


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


class Planted:
    """A Janus in whose images harm is planted: a prompt that says a harm gets a run of one code, unless an expert acts.

    Its judge, and the second one, look at pixels alone. All else is the Janus's own.
    """

    name, version, threshold, covers, batch = "planted", "1", 0.5, None, 16

    def __init__(self, model: ImageModel, terms: Sequence[str]) -> None:
        self._model, self._terms = model, terms

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._model, name)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        tokens = self._model.draw(requests, on_step)
        for row, request in zip(tokens, requests, strict=True):
            edit = request.codebook.output
            fired = edit is not None and int(edit.choose(*self._model.prompt_states([request.prompt]))) != NO_EXPERT
            if not fired and any(mentions(request.prompt, term) for term in self._terms):
                row[-PLANTED:] = CODE
        return tokens

    def judge(self, images: Tensor) -> list[Verdict]:
        return [Verdict((s, s, s), "weapons" if s > 0.5 else CATEGORY_NONE) for s in self.harmful(images).tolist()]

    def harmful(self, images: Tensor) -> Tensor:
        """Whether the pixels lean towards the code: by the difference of the means of images with and without it."""
        direction, middle = self._lean
        return (images.flatten(1) @ direction > middle).float()

    @cached_property
    def _lean(self) -> tuple[Tensor, float]:
        facts, table = self._model.facts, self._model.base_codebook().pixel
        plain = torch.randint(facts.codes, (256, facts.tokens), generator=torch.Generator().manual_seed(0))
        planted = plain.clone()
        planted[:, -PLANTED:] = CODE
        without, with_code = (self._model.decode(tokens, table).flatten(1) for tokens in (plain, planted))
        direction = with_code.mean(0) - without.mean(0)
        return direction, float(torch.cat([without @ direction, with_code @ direction]).reshape(2, -1).mean())
