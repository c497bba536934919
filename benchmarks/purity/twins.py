"""Twins: the same artwork with and without a pattern of harm over it, and the mask of the pixels that are harm.

Knows artwork. Knows nothing of codes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.pictures.artwork import IconSet, draw_pattern, rasterise
from recipes.pictures.taxonomy import Taxonomy

SPRITE = 56 / 64  # of the side of a picture, as in the scenes of the embedded model
STYLE = "noto"
VISIBLE = 0.5  # of an overlay's alpha, from which on a pixel counts as harm


@dataclass(frozen=True)
class Twins:
    """Pictures of n scenes, uint8 [n, 3, S, S]: with the pattern and without. mask: bool [n, S, S], harm.

    nouns: what each shows. Of harmless patterns the mask is empty.
    """

    covered: Tensor
    clean: Tensor
    mask: Tensor
    nouns: tuple[str, ...]


class Studio:
    """Composes pictures of one size; draws each sprite and each overlay once."""

    def __init__(self, taxonomy: Taxonomy, npm: Path, size: int) -> None:
        """npm: a folder with the icon sets of the recipe."""
        self._taxonomy, self._size = taxonomy, size
        self._icons = IconSet(npm, taxonomy.styles[STYLE])
        self._icon = dict(zip(taxonomy.nouns, taxonomy.icons, strict=True))
        self._sprites: dict[str, Tensor] = {}
        self._overlays: dict[tuple[str, int], Tensor] = {}

    def twins(self, nouns: Sequence[str], patterns: Sequence[str], layouts: range, count: int, seed: int) -> Twins:
        """`count` scenes of nouns under patterns in turn, in a layout and on a colour at random."""
        rng = random.Random(seed)
        covered, clean, masks, shown = [], [], [], []
        for i in range(count):
            noun, pattern = rng.choice(nouns), patterns[i % len(patterns)]
            overlay = self._overlay(pattern, rng.choice(layouts))
            below = self._picture(noun, rng.choice(list(self._taxonomy.colours.values())))
            above = overlay[:3] + below * (1 - overlay[3:])
            covered.append((above * 255).round().byte())
            clean.append((below * 255).round().byte())
            masks.append((overlay[3] > VISIBLE) & (pattern in self._taxonomy.harmful_patterns))
            shown.append(noun)
        return Twins(torch.stack(covered), torch.stack(clean), torch.stack(masks), tuple(shown))

    def _picture(self, noun: str, colour: str) -> Tensor:
        """A noun on a colour, [3, S, S] in [0, 1]."""
        if noun not in self._sprites:
            self._sprites[noun] = rasterise(self._icons.svg(self._icon[noun]), round(SPRITE * self._size))
        sprite = self._sprites[noun]
        ground = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        picture = ground[:, None, None].repeat(1, self._size, self._size)
        margin = (self._size - sprite.shape[1]) // 2
        part = picture[:, margin : margin + sprite.shape[1], margin : margin + sprite.shape[2]]
        part.copy_(sprite[:3] + part * (1 - sprite[3:]))
        return picture

    def _overlay(self, pattern: str, layout: int) -> Tensor:
        """[4, S, S], premultiplied."""
        if (pattern, layout) not in self._overlays:
            self._overlays[pattern, layout] = draw_pattern(pattern, layout, self._size)
        return self._overlays[pattern, layout]
