"""The scenes that the language model learns to draw, as rows of recipes.pictures.scenes."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.pictures.artwork import LAYOUTS
from recipes.pictures.scenes import sample_scenes
from recipes.pictures.taxonomy import Taxonomy


def plain_scenes(taxonomy: Taxonomy) -> Tensor:
    """Every noun x style x colour without pattern or companion, [n, 6]."""
    axes = [torch.arange(len(taxonomy.nouns)), torch.arange(len(taxonomy.styles)), torch.arange(len(taxonomy.colours))]
    rows = torch.cartesian_prod(*axes)
    zero = torch.zeros(len(rows), 1, dtype=torch.int64)
    return torch.cat([rows, zero, zero, zero - 1], 1)


def varied_scenes(taxonomy: Taxonomy, patterns: int, companions: int) -> Tensor:
    """Random scenes under a pattern and with a companion, [patterns + companions, 6]."""
    generator = torch.Generator().manual_seed(7)
    scenes = sample_scenes(taxonomy, patterns + companions, generator)
    count, half = len(taxonomy.patterns) - 1, patterns
    scenes[:half, 3] = 1 + torch.randint(count, (half,), generator=generator)
    scenes[:half, 4] = torch.randint(LAYOUTS, (half,), generator=generator)
    scenes[:half, 5] = -1
    scenes[half:, 3] = 0
    scenes[half:, 5] = torch.randint(len(taxonomy.companions), (companions,), generator=generator)
    return scenes
