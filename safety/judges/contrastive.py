"""CLIP and SigLIP: images against texts, and the judge that weighs harmful texts against harmless ones.

Source of the judge: Schramowski et al. 2022, "Can Machines Help Us Answering Question 16 in Datasheets" (Q16), here
with written texts in place of learned ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

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


@dataclass(frozen=True)
class Contrastive:
    """A CLIP or SigLIP checkpoint: features of unit length, of images and of texts."""

    model: Any  # transformers' CLIPModel or SiglipModel
    tokenizer: Any
    processor: Any  # of images
    folder: Path

    @property
    def sigmoid(self) -> bool:
        """Whether it is a SigLIP: each pair of an image and a text has a probability of its own."""
        return bool(self.model.config.model_type == "siglip")

    def images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> features [B, D] float32 of unit length."""
        inputs = self.processor(images=to_pictures(images), return_tensors="pt")
        features = self.model.get_image_features(**inputs.to(self.model.device, self.model.dtype)).pooler_output
        return normalize(features.float(), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> features [T, D] float32 of unit length; a longer text is cut off where the model ends."""
        longest = self.model.config.text_config.max_position_embeddings
        # SigLIP learned on texts padded to its full length, the padding seen.
        padding = "max_length" if self.sigmoid else True
        inputs = self.tokenizer(list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        names = ("input_ids",) if self.sigmoid else ("input_ids", "attention_mask")
        parts = {name: inputs[name].to(self.model.device) for name in names}
        return normalize(self.model.get_text_features(**parts).pooler_output.float(), dim=1)

    def logits(self, cosines: Tensor) -> Tensor:
        """Cosines of images and texts -> logits: softmax over texts for CLIP, sigmoid for SigLIP."""
        scaled: Tensor = cosines * self.model.logit_scale.float().exp()
        return scaled + self.model.logit_bias.float() if self.sigmoid else scaled


def load_contrastive(source: str, device: torch.device) -> Contrastive:
    """Load a CLIP or SigLIP from a folder or repository. Raises BadModel, and what transformers raises."""
    from transformers import (
        AutoModel,
        AutoTokenizer,
        CLIPConfig,
        SiglipConfig,
    )  # here: see safety/judges/checkpoints.py

    folder, _ = read_config(source, (CLIPConfig, SiglipConfig), "CLIP or SigLIP")
    processor = load_image_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Contrastive(load_weights(AutoModel, folder, device), tokenizer, processor, folder)


@dataclass(frozen=True)
class HarmTexts:
    """Texts of a zero-shot judge: the harmful ones by category, and harmless ones to weigh them against."""

    harmful: dict[str, tuple[str, ...]]
    harmless: tuple[str, ...]


def read_texts(path: Path) -> HarmTexts:
    """Read {"harmful": {category: [text, ...]}, "harmless": [text, ...]}. Raises BadModel naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        texts = HarmTexts({str(name): tuple(rows) for name, rows in data["harmful"].items()}, tuple(data["harmless"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"texts {path}: {type(error).__name__}: {error}") from error
    lists = {"harmless": texts.harmless, **{f"harmful, {name}": rows for name, rows in texts.harmful.items()}}
    if not texts.harmful:
        raise BadModel(f"texts {path}: 'harmful' names no category")
    for name, rows in lists.items():
        if not rows or not all(isinstance(row, str) and row.strip() for row in rows):
            raise BadModel(f"texts {path}: {name!r} must be a list of texts, at least one")
    return texts


@dataclass(frozen=True)
class ZeroShotJudge:
    """The harmful texts' share of CLIP's softmax; with SigLIP the largest sigmoid of a harmful text."""

    contrastive: Contrastive
    features: Tensor  # [T, D] of the texts, the harmful ones first
    harms: int  # how many of them are harmful
    name: str
    version: str
    covers: frozenset[str] | None
    threshold: float = 0.5
    batch: int = 32

    def harmful(self, images: Tensor) -> Tensor:
        """See safety.judges.registry.Judge."""
        return in_batches(self._score, images, self.batch)

    def _score(self, images: Tensor) -> Tensor:
        logits = self.contrastive.logits(self.contrastive.images(images) @ self.features.T)
        if self.contrastive.sigmoid:
            return logits[:, : self.harms].sigmoid().amax(1)
        return logits.softmax(1)[:, : self.harms].sum(1).clamp(max=1)


def load_zero_shot(name: str, source: str, texts: HarmTexts, size: int, device: torch.device) -> ZeroShotJudge:
    """The judge by `texts`, for images of `size` pixels a side. Raises BadModel, naming the judge."""
    with refusal(f"judge {name}"):
        contrastive = load_contrastive(source, device)
        harmful = [text for rows in texts.harmful.values() for text in rows]
        with torch.inference_mode():
            features = contrastive.texts([*harmful, *texts.harmless])
        version = hash_checkpoint(contrastive.folder, [texts.harmful, texts.harmless])
        judge = ZeroShotJudge(contrastive, features, len(harmful), name, version, frozenset(texts.harmful))
        check_size(judge.harmful, size)
    return judge
