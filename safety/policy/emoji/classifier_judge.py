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
from safety.policy.emoji.classifiers import Classifier, load_classifier

ARTICLES = ("a ", "an ", "some ")


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


def _named(prompt: str) -> str:
    article = next((article for article in ARTICLES if prompt.startswith(article)), "")
    return prompt.removeprefix(article)
