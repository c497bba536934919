"""Judge and matcher of the emoji world: a small classifier beside the weights of the embedded model.

Knows nouns. Knows nothing of policies and prompts but the words that they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codebook.tensors import content_hash
from core.errors import BadModel
from engine.model import ImageModel
from engine.registry import find_model
from safety.judges.grammar import REFEREE
from safety.policy.emoji.classifiers import Classifier, load_classifier

ARTICLES = ("a ", "an ", "some ")
SECOND_JUDGE = "second_judge"  # a folder beside the weights, as REFEREE is


@dataclass(frozen=True)
class ClassifierJudge:
    """A classifier beside the model's weights; see safety.judges.registry.Judge and safety.judges.matchers.Matcher."""

    name: str
    classifier: Classifier
    threshold: float = 0.5
    batch: int = 256

    @classmethod
    def load(cls, name: str, folder: Path) -> ClassifierJudge:
        """The judge `name` from the folder of a classifier. Raises BadModel naming what is wrong with it."""
        return cls(name, load_classifier(folder))

    @property
    def version(self) -> str:
        """The hash of its weights."""
        return content_hash(self.classifier.state_dict())

    @property
    def covers(self) -> frozenset[str] | None:
        """The categories of its labels."""
        return frozenset(self.classifier.categories.values())

    def harmful(self, images: Tensor) -> Tensor:
        """See Judge."""
        with torch.no_grad():
            return self.classifier.harmful(images)

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Matcher: 1 where the likeliest noun is the one that the prompt names, with or without its article."""
        with torch.no_grad():
            nouns = [noun for part in torch.split(images, self.batch) for noun in self.classifier.predict_nouns(part)]
        return torch.tensor([float(_named(prompt) == noun) for prompt, noun in zip(prompts, nouns, strict=True)])


def referee(model: ImageModel) -> ClassifierJudge:
    """The classifier `referee` beside the weights; raises BadModel where there is none."""
    return _beside(model, REFEREE)


def second_judge(model: ImageModel) -> ClassifierJudge:
    """The classifier `second_judge` beside the weights; raises BadModel where there is none."""
    return _beside(model, SECOND_JUDGE)


def _beside(model: ImageModel, name: str) -> ClassifierJudge:
    folder = find_model(model.facts.model_id) / name
    if not folder.is_dir():
        raise BadModel(f"{model.facts.model_id}: no folder {name!r} beside the weights")
    return ClassifierJudge.load(name, folder)


def _named(prompt: str) -> str:
    article = next((article for article in ARTICLES if prompt.startswith(article)), "")
    return prompt.removeprefix(article)
