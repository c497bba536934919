"""Small image classifiers beside the model: the second judge, and the referee that only measures.

Two architectures, so that the two do not share their mistakes. Knows nothing of their training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codebook.tensors import is_finite
from core.errors import BadModel

PLAIN = "plain"
RESIDUAL = "residual"
NO_PATTERN = "none"  # the label of an image without a pattern
FEATURES = 160  # width of the pooled feature both heads read


def _convolution(inputs: int, outputs: int, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; halves the picture when `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def _plain_trunk() -> nn.Sequential:
    return nn.Sequential(
        _convolution(3, 32, 2, 5),
        _convolution(32, 64, 2),
        _convolution(64, 64, 1),
        _convolution(64, 128, 2),
        _convolution(128, 128, 1),
        _convolution(128, FEATURES, 2),
    )


def _residual_trunk() -> nn.Sequential:
    return nn.Sequential(_convolution(3, 24, 2), _Residual(24, 48, 2), _Residual(48, 80, 2), _Residual(80, FEATURES, 2))


class Classifier(nn.Module):
    """Two heads over one trunk, for the noun and the pattern of an image; the harm follows from both.

    arch: "plain" or "residual"; nouns, patterns: label names in order (NO_PATTERN for none);
    categories: the harm category of every harmful label, e.g. {"knife": "weapons", "splatter": "gore"}.
    Raises BadModel for an unknown arch or a harmful label that is neither a noun nor a pattern.
    """

    def __init__(self, arch: str, nouns: Sequence[str], patterns: Sequence[str], categories: Mapping[str, str]) -> None:
        """Make the network with random weights; see the class for the arguments."""
        super().__init__()
        trunks = {PLAIN: _plain_trunk, RESIDUAL: _residual_trunk}
        if arch not in trunks:
            raise BadModel(f"classifier arch {arch!r}: expected one of {', '.join(trunks)}")
        if strangers := sorted(set(categories) - set(nouns) - set(patterns)):
            raise BadModel(f"harmful labels that are neither nouns nor patterns: {', '.join(strangers)}")
        self.arch, self.nouns, self.patterns, self.categories = arch, tuple(nouns), tuple(patterns), dict(categories)
        self.trunk = trunks[arch]()
        self.noun_head = nn.Linear(FEATURES, len(self.nouns))
        self.look_head = nn.Linear(FEATURES, len(self.patterns))  # of patterns; the name is a key of the weights

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] float32 in [-1, 1] -> noun logits [B, nouns] and pattern logits [B, patterns]."""
        pooled = self.features(images)
        return self.noun_head(pooled), self.look_head(pooled)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> the pooled features [B, FEATURES] that both heads read."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.trunk(images), 1), 1)

    @torch.no_grad()
    def predict_nouns(self, images: Tensor) -> list[str]:
        """The likeliest noun of each image [B, 3, H, W]."""
        return [self.nouns[i] for i in self(images)[0].argmax(1).tolist()]

    @torch.no_grad()
    def predict_patterns(self, images: Tensor) -> list[str]:
        """The likeliest pattern of each image [B, 3, H, W]."""
        return [self.patterns[i] for i in self(images)[1].argmax(1).tolist()]

    @torch.no_grad()
    def harmful(self, images: Tensor) -> Tensor:
        """Probability [B] float32 in [0, 1] that the noun or the pattern of each image is harmful."""
        nouns, patterns = self(images)
        innocent = torch.ones(images.shape[0])
        for logits, labels in ((nouns, self.nouns), (patterns, self.patterns)):
            bad = torch.tensor([label in self.categories for label in labels])
            # A sum of shares may miss one by its last bits.
            innocent = innocent * (1 - logits.softmax(1)[:, bad].sum(1)).clamp(0, 1).cpu()
        return 1 - innocent

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (float16) to `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"arch": self.arch, "nouns": self.nouns, "looks": self.patterns, "categories": self.categories}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        weights = {n: t.half() if t.is_floating_point() else t for n, t in self.state_dict().items()}
        save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors")


def load_classifier(folder: Path) -> Classifier:
    """Load a classifier for inference on the CPU, float32. Raises BadModel naming what is wrong with the folder."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classifier = Classifier(config["arch"], config["nouns"], config["looks"], config["categories"])
        weights = load_file(folder / "model.safetensors")
        classifier.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in weights.items()})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadModel(f"classifier folder {folder}: {error}") from error
    for name, weight in weights.items():
        if not is_finite(weight):
            raise BadModel(f"classifier folder {folder}: its weight {name} holds NaN or infinity")
    return classifier.eval().requires_grad_(False)
