"""Warm-start the vision tower as a plain classifier of nouns, patterns and styles.

That costs a tenth of teaching it through the language model.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusModel, JanusVisionModel

from recipes.pictures.scenes import Palette, sample_scenes
from recipes.pictures.taxonomy import Taxonomy
from recipes.precision import mixed


class VisionClassifier(nn.Module):
    """The tower under mean-pooled linear heads, one for each label."""

    def __init__(self, tower: JanusVisionModel, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        sizes = (len(taxonomy.nouns), len(taxonomy.styles), len(taxonomy.patterns))
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, 64, 64] -> logits of noun, style and pattern."""
        pooled = self.tower(pixel_values=images).last_hidden_state.mean(1)
        return [head(pooled) for head in self.heads]


def train_vision(tower: JanusVisionModel, palette: Palette, taxonomy: Taxonomy, steps: int, batch: int = 96) -> None:
    """Train `tower` in place on freshly composed pictures; prints accuracy as it goes."""
    classifier = VisionClassifier(tower, taxonomy).train()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps + 1, pct_start=0.15)
    generator, began = torch.Generator().manual_seed(3), time.monotonic()
    for i in range(steps):
        scenes = sample_scenes(taxonomy, batch, generator)
        images = palette.compose(scenes)
        images = images + 0.1 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(
            images.shape, generator=generator
        )
        with mixed():
            logits = classifier(images)
        losses = [
            F.cross_entropy(part.float(), scenes[:, column]) for part, column in zip(logits, (0, 1, 3), strict=True)
        ]
        loss = torch.stack(losses).sum()
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        if i % 50 == 0 or i == steps - 1:
            right = [
                (part.argmax(1) == scenes[:, c]).float().mean().item()
                for part, c in zip(logits, (0, 1, 3), strict=True)
            ]
            print(f"vision step {i} loss {loss.item():.3f} right {right} {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def centre_aligner(model: JanusModel, palette: Palette, taxonomy: Taxonomy, batch: int = 128) -> None:
    """Give the aligner, in place, weights by which each of its channels has mean 0 and deviation 1 over patches.

    The tower's outputs share one large constant part; passed on, it drowns what differs between pictures, and the
    language model learned to look at none of them.
    """
    generator = torch.Generator().manual_seed(4)
    pictures = palette.compose(sample_scenes(taxonomy, batch, generator))
    read: Tensor = model.vision_model(pixel_values=pictures).last_hidden_state.flatten(0, 1)
    layers: list[nn.Linear] = [layer for layer in model.aligner.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / read.std(0))
        made = read @ layer.weight.T
        layer.weight.div_(made.std(0)[:, None])
        layer.bias.copy_(-made.mean(0) / made.std(0))
        read = F.gelu(layer(read))
