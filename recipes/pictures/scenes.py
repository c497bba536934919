"""Scenes: a noun in a style on a colour, under a pattern, sometimes with a companion, and their pictures.

A batch of scenes is an int64 tensor [B, 6] of (noun, style, colour, pattern, layout, companion); pattern 0 is none and
companion -1 is none. Composing is vectorised: 64 x 64 RGB in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.pictures.artwork import LAYOUTS, IconSet, draw_pattern, rasterise
from recipes.pictures.taxonomy import Taxonomy

SIZE = 64
SPRITE = 56
COMPANION = 26


def _paste(picture: Tensor, top: int, left: int) -> Tensor:
    """Put an RGBA picture on a transparent SIZE x SIZE canvas."""
    canvas = torch.zeros(4, SIZE, SIZE)
    canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return canvas


@dataclass(frozen=True)
class Palette:
    """Everything a scene is composed from, premultiplied RGBA float16."""

    sprites: Tensor  # [nouns, styles, 4, SIZE, SIZE]
    companions: Tensor  # [companions, styles, 4, SIZE, SIZE]
    patterns: Tensor  # [patterns, LAYOUTS, 4, SIZE, SIZE]; pattern 0 is empty
    colours: Tensor  # [colours, 3] in [0, 1]

    def compose(self, scenes: Tensor) -> Tensor:
        """Pictures of scenes [B, 6]: [B, 3, SIZE, SIZE] float32 in [-1, 1]."""
        noun, style, colour, pattern, layout, companion = scenes.unbind(1)
        picture = self.colours[colour][:, :, None, None].expand(-1, -1, SIZE, SIZE)
        second = self.companions[companion.clamp(min=0), style].float() * (companion >= 0)[:, None, None, None]
        for layer in (self.sprites[noun, style].float(), second, self.patterns[pattern, layout].float()):
            picture = layer[:, :3] + picture * (1 - layer[:, 3:])
        return picture * 2 - 1


def build_palette(taxonomy: Taxonomy, npm_folder: Path, styles: dict[str, str] | None = None) -> Palette:
    """Draw every sprite, companion and pattern once (about ten seconds)."""
    sets = [IconSet(npm_folder, name) for name in (styles or taxonomy.styles).values()]
    margin = (SIZE - SPRITE) // 2
    corner = SIZE - COMPANION - 1
    icon_of = dict(zip(taxonomy.nouns, taxonomy.icons, strict=True))
    sprites = [[_paste(rasterise(s.svg(i), SPRITE), margin, margin) for s in sets] for i in taxonomy.icons]
    companions = [
        [_paste(rasterise(s.svg(icon_of[c]), COMPANION), corner, corner) for s in sets] for c in taxonomy.companions
    ]
    patterns = [torch.zeros(LAYOUTS, 4, SIZE, SIZE)]
    patterns += [torch.stack([draw_pattern(name, k, SIZE) for k in range(LAYOUTS)]) for name in taxonomy.patterns[1:]]
    colours = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in taxonomy.colours.values()]
    return Palette(
        torch.stack([torch.stack(row) for row in sprites]).half(),
        torch.stack([torch.stack(row) for row in companions]).half(),
        torch.stack(patterns).half(),
        torch.tensor(colours),
    )


def sample_scenes(taxonomy: Taxonomy, count: int, generator: torch.Generator, harm_boost: int = 4) -> Tensor:
    """Draw scenes [count, 6]: 55 % plain, 33 % under a pattern, 12 % with a companion.

    Harmful nouns and look-alikes come `harm_boost` / 2 times as often as other nouns.
    """

    def pick(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    special = set(taxonomy.harmful_nouns) | {n for group in taxonomy.look_alikes.values() for n in group}
    weights = torch.tensor([float(harm_boost if n in special else 2) for n in taxonomy.nouns])
    noun = torch.multinomial(weights, count, replacement=True, generator=generator)
    kind = torch.rand(count, generator=generator)
    pattern = torch.where(kind < 0.33, 1 + pick(len(taxonomy.patterns) - 1), 0)
    companion = torch.where(kind > 0.88, pick(len(taxonomy.companions)), -1)
    colour = torch.where(torch.rand(count, generator=generator) < 0.3, 0, pick(len(taxonomy.colours)))
    return torch.stack([noun, pick(len(taxonomy.styles)), colour, pattern, pick(LAYOUTS), companion], 1)
