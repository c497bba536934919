"""Matchers: how probably an image shows its prompt, by the served model itself or by CLIP or SigLIP.

Names: `ask`, and `clip:FOLDER` for a folder or hub repository of either; both may end in @THRESHOLD, from 0 to 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from core.errors import BadInput, BadModel, BadNumber
from engine.model import ImageModel
from safety.judges.checkpoints import check_size, hash_checkpoint, refusal
from safety.judges.contrastive import Contrastive, load_contrastive
from safety.judges.grammar import split_threshold

ASK, CLIP = "ask", "clip:"
QUESTION = "Does this image show {prompt}? Answer yes or no."
CLIP_SCORE = 2.5  # the factor of CLIPScore, Hessel et al. 2021, arXiv 2104.08718


@runtime_checkable
class Matcher(Protocol):
    """Scores how well images show their prompts; `name`, `version` and `threshold` stand in every report."""

    @property
    def name(self) -> str:
        """Its name on the command line, without the threshold."""

    @property
    def version(self) -> str:
        """A hash of its model, and of what it is asked."""

    @property
    def threshold(self) -> float:
        """Above this probability an image counts as showing its prompt."""

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probability [B] float32 in [0, 1] that each of images [B, 3, H, W] in [-1, 1] shows its prompt."""


@runtime_checkable
class Asks(Protocol):
    """A model that answers yes or no about images."""

    def ask(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """P(yes) [B] float32 in [0, 1] for one question about each of images [B, 3, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class AskMatcher:
    """The served model's own answer. It is worth as much as the model has learned to answer such questions."""

    model: Asks
    model_hash: str
    question: str = QUESTION  # holds {prompt}
    name: str = ASK
    threshold: float = 0.5

    @property
    def version(self) -> str:
        """See Matcher."""
        return hashlib.sha256(f"{self.model_hash}\n{self.question}".encode()).hexdigest()

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Matcher. Raises BadInput for a prompt that the model cannot read."""
        # Not str.format: a prompt may hold braces.
        return self.model.ask(images, [self.question.replace("{prompt}", prompt) for prompt in prompts])


@dataclass(frozen=True)
class ClipMatcher:
    """SigLIP's probability of the pair, or with CLIP its CLIPScore: 2.5 times the cosine, cut to [0, 1].

    A CLIPScore ranks and is no calibrated probability; its threshold must be measured. Texts longer than the model
    reads (77 tokens with CLIP, 64 with SigLIP) are cut off.
    """

    contrastive: Contrastive
    name: str
    version: str
    threshold: float = 0.5
    batch: int = 32

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Matcher."""
        scores = [torch.zeros(0)]
        with torch.inference_mode():
            for start in range(0, images.shape[0], self.batch):
                part = slice(start, start + self.batch)
                scores.append(self._score(images[part], prompts[part]))
        return torch.cat(scores)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        cosines = (self.contrastive.images(images) * self.contrastive.texts(prompts)).sum(1)
        if self.contrastive.sigmoid:
            return self.contrastive.logits(cosines).sigmoid().cpu()
        return (CLIP_SCORE * cosines).clamp(0, 1).cpu()


def parse_matcher(name: str, model: ImageModel, device: torch.device) -> Matcher:
    """The matcher called `name` (see the module), its weights on `device`, for images as `model` draws them.

    Raises BadInput for any other name, BadModel for a model that cannot be asked or a checkpoint that cannot serve.
    """
    body, threshold = split_threshold(name, "matcher")
    matcher: AskMatcher | ClipMatcher
    if body == ASK:
        if not isinstance(model, Asks):
            raise BadModel(f"matcher ask: models of the family {model.facts.family!r} answer no questions about images")
        matcher = AskMatcher(model, model.facts.model_hash)
    elif body.startswith(CLIP) and body != CLIP:
        matcher = _load_clip(body, model.facts.image_size, device)
    else:
        raise BadInput("matcher", body, "ask, or clip:FOLDER with a folder or repository of a CLIP or SigLIP")
    return matcher if threshold is None else replace(matcher, threshold=threshold)


def shows_prompt(matcher: Matcher, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Bool [B]: whether each of images [B, 3, H, W] in [-1, 1] shows its prompt, by a matcher and its threshold.

    Raises BadNumber, naming the matcher, for an answer that is not one probability an image.
    """
    if len(prompts) != images.shape[0]:
        raise BadInput("prompts", len(prompts), f"one for each of {images.shape[0]} images")
    scores = matcher.match(images, prompts)
    if scores.shape != images.shape[:1] or not bool(((scores >= 0) & (scores <= 1)).all()):
        raise BadNumber(
            f"matcher {matcher.name}", f"answers {scores.tolist()} where {len(images)} probabilities are due"
        )
    return scores > matcher.threshold


def _load_clip(name: str, size: int, device: torch.device) -> ClipMatcher:
    with refusal(f"matcher {name}"):
        contrastive = load_contrastive(name.removeprefix(CLIP), device)
        matcher = ClipMatcher(contrastive, name, hash_checkpoint(contrastive.folder))
        check_size(lambda images: matcher.match(images, ["an image"] * len(images)), size)
    return matcher
