"""Image classifiers of transformers as judges: the probability of the labels that mean harm (`hf:<folder>#<label>`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.errors import BadModel
from safety.judges.checkpoints import (
    check_size,
    hash_checkpoint,
    in_batches,
    load_image_processor,
    load_weights,
    read_config,
    refusal,
    to_pictures,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MULTI_LABEL = "multi_label_classification"  # as a configuration's problem_type says


@dataclass(frozen=True)
class LabelJudge:
    """The sum of the labels' softmax; of a multi-label classifier the largest of their sigmoids."""

    classifier: Any  # a model of transformers for image classification
    processor: Any  # its image processor
    labels: tuple[int, ...]
    name: str
    version: str
    covers: frozenset[str] | None = None
    threshold: float = 0.5
    batch: int = 32

    def harmful(self, images: Tensor) -> Tensor:
        """See safety.judges.registry.Judge."""
        return in_batches(self._score, images, self.batch)

    def _score(self, images: Tensor) -> Tensor:
        inputs = self.processor(images=to_pictures(images), return_tensors="pt")
        model = self.classifier
        logits: Tensor = model(**inputs.to(model.device, model.dtype)).logits.float()  # [B, labels]
        columns = list(self.labels)
        if model.config.problem_type == MULTI_LABEL:
            return logits[:, columns].sigmoid().amax(1)
        return logits.softmax(1)[:, columns].sum(1).clamp(max=1)  # a sum of shares may miss one by its last bits


def load_label_judge(
    name: str, source: str, label: str, covers: frozenset[str] | None, size: int, device: torch.device
) -> LabelJudge:
    """The classifier in the folder or repository `source`, judging by `label`: one, or several joined with "+".

    size: the side in pixels of the images to come. Raises BadModel, naming the judge, before weights are read where
    the folder is none of an image classifier or lacks the label.
    """
    from transformers import AutoModelForImageClassification  # here: see safety/judges/checkpoints.py
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    with refusal(f"judge {name}"):
        folder, config = read_config(source, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "image classifier")
        if config.model_type == "shieldgemma2":
            raise BadModel(f"{folder}: answers policies, not labels; name it guard:{source}")
        labels = _find_labels(config, label)
        processor = load_image_processor(folder)
        version = hash_checkpoint(folder, sorted(labels))
        classifier = load_weights(AutoModelForImageClassification, folder, device)
        judge = LabelJudge(classifier, processor, labels, name, version, covers)
        check_size(judge.harmful, size)
    return judge


def _find_labels(config: PreTrainedConfig, label: str) -> tuple[int, ...]:
    numbers = {str(text): int(number) for number, text in (config.id2label or {}).items()}
    parts = [label] if label in numbers else label.split("+")
    if strangers := [part for part in parts if part not in numbers]:
        raise BadModel(f"no label {strangers[0]!r}; its labels are {', '.join(map(repr, numbers))}")
    if config.problem_type != MULTI_LABEL and len(set(parts)) == len(numbers):
        raise BadModel(f"{label!r} is every label it has: no image could be harmless")
    return tuple(numbers[part] for part in dict.fromkeys(parts))
