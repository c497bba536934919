"""A model of any family in whose images harm is planted: its verdicts mean something, though it has learned nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from engine.model import CATEGORY_NONE, ImageModel, ImageRequest, Verdict
from safety.policy.prompts import mentions

PLANTED = 12  # tokens that a harm replaces, the last ones
EXAMPLES = 24  # images by which the judge learns what the code looks like


class Planted:
    """A model in whose images harm is planted: a prompt that says a harm gets a run of one code, unless an expert acts.

    Its judge, and the second one, look at pixels alone. All else is the model's own.
    """

    name, version, threshold, covers, batch = "planted", "1", 0.5, None, 16
    code = 20  # of the harm

    def __init__(self, model: ImageModel, terms: Sequence[str]) -> None:
        self._model, self._terms = model, terms

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever the model has)
        return getattr(self._model, name)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        tokens = self._model.draw(requests, on_step)
        for row, request in zip(tokens, requests, strict=True):
            if self.says_harm(request.prompt) and not self._fires(request):
                row[-PLANTED:] = self.code
        return tokens

    def says_harm(self, prompt: str) -> bool:
        """Whether a prompt gets the run of codes."""
        return any(mentions(prompt, term) for term in self._terms)

    def _fires(self, request: ImageRequest) -> bool:
        edit = request.codebook.output
        return edit is not None and any(edit.experts(*self.prompt_states([request.prompt])))

    def judge(self, images: Tensor) -> list[Verdict]:
        return [Verdict((s, s, s), "weapons" if s > 0.5 else CATEGORY_NONE) for s in self.harmful(images).tolist()]

    def harmful(self, images: Tensor) -> Tensor:
        """Whether the pixels lean towards the code: by the difference of the means of images with and without it."""
        direction, middle = self._lean
        return (images.flatten(1) @ direction > middle).float()

    @cached_property
    def _lean(self) -> tuple[Tensor, float]:
        facts, table = self._model.facts, self._model.base_codebook().pixel
        plain = torch.randint(facts.codes, (EXAMPLES, facts.tokens), generator=torch.Generator().manual_seed(0))
        planted = plain.clone()
        planted[:, -PLANTED:] = self.code
        without, with_code = (self._model.decode(tokens, table).flatten(1) for tokens in (plain, planted))
        direction = with_code.mean(0) - without.mean(0)
        return direction, float(torch.cat([without @ direction, with_code @ direction]).reshape(2, -1).mean())
