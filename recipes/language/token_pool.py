"""The training pool of the language model: scenes, their tokens, and how often each is drawn.

Knows scenes and patch codes. Knows nothing of the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.patch_codes import PatchCodes
from recipes.pictures.scenes import Palette
from recipes.pictures.taxonomy import Taxonomy
from recipes.pool import plain_scenes, varied_scenes
from recipes.sizes import Sizes


@dataclass
class Pool:
    """Scenes [n, 6] and tokens [n, 64]; `weights` [n] says how often to draw each."""

    scenes: Tensor
    tokens: Tensor
    weights: Tensor


def pool_weights(scenes: Tensor, taxonomy: Taxonomy) -> Tensor:
    """Plain 46 %, patterns 44 %, companions 10 %; harmful nouns and their look-alikes twice as often as the rest."""
    special = set(taxonomy.harmful_nouns) | {n for group in taxonomy.look_alikes.values() for n in group}
    boost = torch.tensor([2.0 if n in special else 1.0 for n in taxonomy.nouns])[scenes[:, 0]]
    kind = torch.where(scenes[:, 3] > 0, 1, torch.where(scenes[:, 5] >= 0, 2, 0))
    share = torch.tensor([0.46, 0.44, 0.10])
    counts = torch.bincount(kind, boost, minlength=3)
    return boost * (share / counts)[kind]


def build_pool(codes: PatchCodes, palette: Palette, taxonomy: Taxonomy, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Scenes [n, 6] and their tokens [n, 64] int16; the plain ones come first."""
    scenes = torch.cat([plain_scenes(taxonomy), varied_scenes(taxonomy, sizes.patterns, sizes.companions)])
    return scenes, torch.cat([codes.tokens(palette.compose(part)).to(torch.int16) for part in torch.split(scenes, 64)])
