"""The embedded model's codes: spherical k-means over picture patches, so that every code is a local pattern.

Training encoder, codes and decoder together from scratch needs far more pictures than a small machine gives: after
13,000 pictures the joint model was still close to the mean picture, while patch codes reconstructed at a third of its
loss with no decoder at all. The decoder and the encoder are then taught with these codes held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.pictures.scenes import Palette
from recipes.pictures.taxonomy import Taxonomy
from recipes.pool import plain_scenes, varied_scenes

CODES, CODE_DIM, PATCH = 4096, 32, 8


def patches(images: Tensor) -> Tensor:
    """Images [B, 3, 64, 64] -> patches [B, 64, 192], row by row."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


@dataclass(frozen=True)
class PatchCodes:
    """A linear embedding of patches on the unit sphere and the codes in it."""

    mean: Tensor  # [192]
    basis: Tensor  # [192, D - 1], principal components
    lift: float  # a constant last coordinate, so that the length of the rest survives the normalisation
    codes: Tensor  # [K, D], unit rows

    def embed(self, patch: Tensor) -> Tensor:
        """Patches [.., 192] -> unit vectors [.., D]."""
        centred = (patch - self.mean) @ self.basis
        return F.normalize(torch.cat([centred, torch.full_like(centred[..., :1], self.lift)], -1), dim=-1)

    def tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, 64, 64] in [-1, 1] -> tokens [B, 64] int64."""
        return (self.embed(patches(images)) @ self.codes.T).argmax(-1)


def unique_patches(
    palette: Palette, taxonomy: Taxonomy, scenes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Distinct patches [n, 192] of many scenes and how often each occurred [n]."""
    varied = varied_scenes(taxonomy, patterns=scenes * 5 // 7, companions=scenes * 2 // 7)
    every = torch.cat([plain_scenes(taxonomy), varied])
    rows = torch.cat([patches(palette.compose(part)).half().flatten(0, 1) for part in torch.split(every, 256)])
    coarse = (rows[:, ::7].float() * 50).round().long()
    keys = (coarse * torch.randint(1, 1 << 40, (coarse.shape[1],), generator=generator)).sum(1)
    _, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    first = torch.full((len(counts),), -1).scatter_(0, inverse.flip(0), torch.arange(len(rows)).flip(0))
    return rows[first].float(), counts.float()


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """Unit points [n, D] -> ids [n] of the closest unit codes [K, D]."""
    return torch.cat([(part @ codes.T).argmax(1) for part in torch.split(points, 8192)])


def fit_patch_codes(palette: Palette, taxonomy: Taxonomy, scenes: int, rounds: int, seed: int = 0) -> PatchCodes:
    """Principal components, then weighted spherical k-means with empty codes restarted, over `scenes` varied scenes."""
    generator = torch.Generator().manual_seed(seed)
    rows, counts = unique_patches(palette, taxonomy, scenes, generator)
    mean = rows.mean(0)
    sample = rows[torch.randperm(len(rows), generator=generator)[:40000]] - mean
    basis = torch.linalg.svd(sample, full_matrices=False).Vh[: CODE_DIM - 1].T.contiguous()
    lift = 0.7 * float((sample @ basis).norm(dim=1).mean())
    space = PatchCodes(mean, basis, lift, torch.empty(0))
    points, weights = space.embed(rows), counts.clamp(max=20).sqrt()
    codes = points[torch.multinomial(weights, CODES, generator=generator)]
    for _ in range(rounds):
        ids = nearest(points, codes)
        sums = torch.zeros_like(codes).index_add_(0, ids, points * weights[:, None])
        empty = torch.bincount(ids, minlength=CODES) == 0
        sums[empty] = points[torch.randperm(len(points), generator=generator)[: int(empty.sum())]]
        codes = F.normalize(sums, dim=1)
    return PatchCodes(mean, basis, lift, codes)
