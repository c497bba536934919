"""Train the second judge and the referee: two architectures, two seeds, two disjoint halves of the scenes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from recipes.language.token_pool import build_pool
from recipes.patch_codes import PatchCodes
from recipes.pictures.scenes import Palette, build_palette, sample_scenes
from recipes.pictures.taxonomy import Taxonomy, load_taxonomy
from recipes.sizes import Sizes
from recipes.train_vq import draw_tokens, load_vq
from safety.policy.emoji.classifiers import PLAIN, RESIDUAL, Classifier

SECOND_JUDGE, REFEREE = "second_judge", "referee"
HALVES = {SECOND_JUDGE: 0, REFEREE: 1}


def half_of(scenes: Tensor) -> Tensor:
    """The half of each scene [n, 6], 0 or 1: a parity over all its parts, so that both halves know every word."""
    return (scenes + 2).sum(1) % 2


@torch.inference_mode()
def reconstructions(vq: JanusVQVAE, tokens: Tensor, seed: int) -> Tensor:
    """Pictures uint8 [n, 3, 64, 64] of tokens [n, 64] of which up to a fifth have been swapped between pictures."""
    generator = torch.Generator().manual_seed(seed)
    rate = 0.2 * torch.rand(len(tokens), 1, generator=generator)
    others = tokens[torch.randperm(len(tokens), generator=generator)]
    mixed = torch.where(torch.rand(tokens.shape, generator=generator) < rate, others, tokens).long()
    pictures = [((draw_tokens(vq, part) + 1) * 127.5).byte() for part in torch.split(mixed, 64)]
    return torch.cat(pictures)


def accuracy(classifier: Classifier, pictures: Tensor, scenes: Tensor) -> tuple[float, float]:
    """Share of nouns and of patterns named right."""
    with torch.inference_mode():
        nouns, patterns = classifier.eval()(pictures)
    classifier.train()
    right = (nouns.argmax(1) == scenes[:, 0], patterns.argmax(1) == scenes[:, 3])
    return right[0].float().mean().item(), right[1].float().mean().item()


def train_classifier(
    name: str, palette: Palette, taxonomy: Taxonomy, drawn: tuple[Tensor, Tensor], steps: int, batch: int = 96
) -> Classifier:
    """Train one classifier on composed pictures and, a third of each batch, on `drawn` (scenes, pictures uint8)."""
    torch.manual_seed(100 + HALVES[name])
    categories = {**taxonomy.harmful_nouns, **taxonomy.harmful_patterns}
    classifier = Classifier(
        PLAIN if name == SECOND_JUDGE else RESIDUAL, taxonomy.nouns, taxonomy.patterns, categories
    ).train()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps + 1, pct_start=0.2)
    generator, began = torch.Generator().manual_seed(200 + HALVES[name]), time.monotonic()
    for i in range(steps):
        scenes = sample_scenes(taxonomy, 2 * batch, generator)
        scenes = scenes[half_of(scenes) == HALVES[name]][: batch * 2 // 3]
        chosen = torch.randint(len(drawn[0]), (batch // 3,), generator=generator)
        pictures = torch.cat([palette.compose(scenes), drawn[1][chosen].float() / 127.5 - 1])
        scenes = torch.cat([scenes, drawn[0][chosen]])
        pictures = pictures + 0.15 * torch.rand(len(pictures), 1, 1, 1, generator=generator) * torch.randn(
            pictures.shape, generator=generator
        )
        pictures = torch.roll(
            pictures,
            (int(torch.randint(-2, 3, (), generator=generator)), int(torch.randint(-2, 3, (), generator=generator))),
            (2, 3),
        )
        nouns, patterns = classifier(pictures.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(nouns, scenes[:, 0], label_smoothing=0.05) + F.cross_entropy(
            patterns, scenes[:, 3], label_smoothing=0.05
        )
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        if i % 100 == 0 or i == steps - 1:
            noun, pattern = accuracy(classifier, pictures, scenes)
            took = time.monotonic() - began
            print(
                f"{name} step {i} loss {loss.item():.3f} noun {noun:.3f} pattern {pattern:.3f} {took:.0f} s", flush=True
            )
    return classifier.eval()


def train(npm: Path, out: Path, sizes: Sizes) -> None:
    """Train both from out/vq.pt and out/codes.pt; leave out/second_judge and out/referee."""
    taxonomy, vq = load_taxonomy(), load_vq(out / "vq.pt")
    palette = build_palette(taxonomy, npm)
    scenes, tokens = build_pool(PatchCodes(**torch.load(out / "codes.pt")), palette, taxonomy, sizes)
    halves = half_of(scenes)
    for name, half in HALVES.items():
        mine = (halves == half).nonzero().flatten()
        order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(half))
        mine = mine[order[: sizes.reconstructions]]
        drawn = scenes[mine], reconstructions(vq, tokens[mine], seed=half)
        train_classifier(name, palette, taxonomy, drawn, sizes.classifier).save(out / name)
