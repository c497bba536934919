"""Codecs: pictures to tokens and back under any table. Patch codebooks of any shape, and a served model's own.

A patch codebook decodes without a network: principal components of patches, and k-means in them. What an edit of a row
does is then exact, and a row is one patch; a learned decoder mixes neighbours on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.runner.served import Served

ROUNDS = 6  # of k-means
SAMPLE = 40_000  # patches that it sees
PART = 4096  # patches whose distances are held together


class Codec(Protocol):
    """Pictures [n, 3, S, S] in [-1, 1] to tokens [n, N] and back, under any table [K, D]."""

    @property
    def table(self) -> Tensor:
        """The codec's own."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether rows have unit length."""
        ...

    @property
    def side(self) -> int:
        """Tokens in a row of a picture."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Tokens [n, N] int64."""
        ...

    def decode(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Pictures [n, 3, S, S]."""
        ...


@dataclass(frozen=True)
class PatchCodec:
    """table: [K, D]; mean: [P], basis: [P, d] of patches of f x f pixels; lift: the last coordinate, of unit rows."""

    f: int
    side: int
    mean: Tensor
    basis: Tensor
    lift: float
    table: Tensor

    @property
    def normalised(self) -> bool:
        """Whether rows have unit length."""
        return self.lift > 0

    def encode(self, pictures: Tensor) -> Tensor:
        """See Codec."""
        points = _embedded(F.unfold(pictures, self.f, stride=self.f).transpose(1, 2), self.mean, self.basis, self.lift)
        return _nearest(points.flatten(0, 1), self.table).view(len(pictures), -1)

    def decode(self, tokens: Tensor, table: Tensor) -> Tensor:
        """See Codec."""
        rows = table[tokens]
        if self.normalised:
            rows = rows[..., :-1] / rows[..., -1:].clamp(min=0.05) * self.lift
        patches = rows @ self.basis.T + self.mean
        return F.fold(patches.transpose(1, 2), self.side * self.f, self.f, stride=self.f).clamp(-1, 1)


@dataclass(frozen=True)
class ModelCodec:
    """A served model's own encoder, table and decoder."""

    model: Served
    side: int

    @property
    def table(self) -> Tensor:
        """The model's own table."""
        return self.model.base_codebook().pixel

    @property
    def normalised(self) -> bool:
        """Whether the model normalises rows."""
        return self.model.facts.normalised

    def encode(self, pictures: Tensor) -> Tensor:
        """See Codec. Raises ValueError for a model that cannot encode."""
        tokens = self.model.encode(pictures)
        if tokens is None:
            raise ValueError(f"{self.model.facts.model_id} has no encoder")
        return tokens

    def decode(self, tokens: Tensor, table: Tensor) -> Tensor:
        """See Codec."""
        with torch.no_grad():
            return self.model.decode(tokens, table).clamp(-1, 1)


def fit(pictures: Tensor, f: int, codes: int, dim: int, normalised: bool, seed: int = 0) -> PatchCodec:
    """A patch codec of [codes, dim] for pictures uint8 [n, 3, S, S]; dim is at most 3 f^2."""
    generator = torch.Generator().manual_seed(seed)
    each = max(1, SAMPLE // len(pictures))
    parts = []
    for picture in pictures:
        patches = F.unfold(picture[None].float() / 127.5 - 1, f, stride=f)[0].T
        parts.append(patches[torch.randperm(len(patches), generator=generator)[:each]])
    rows = torch.cat(parts)
    mean = rows.mean(0)
    sample = rows[torch.randperm(len(rows), generator=generator)[:20_000]] - mean
    values, vectors = torch.linalg.eigh(sample.T @ sample)
    basis = vectors[:, values.argsort(descending=True)[: dim - normalised]].contiguous()
    lift = 0.7 * float((sample @ basis).norm(dim=1).mean()) if normalised else 0.0
    points = _embedded(rows, mean, basis, lift)
    table = points[torch.randperm(len(points), generator=generator)[:codes]].clone()
    for _ in range(ROUNDS):
        ids = _nearest(points, table)
        counts = torch.bincount(ids, minlength=codes)
        sums = torch.zeros_like(table).index_add_(0, ids, points)
        sums[counts == 0] = points[torch.randperm(len(points), generator=generator)[: int((counts == 0).sum())]]
        table = F.normalize(sums, dim=1) if normalised else sums / counts.clamp(min=1)[:, None]
    return PatchCodec(f, pictures.shape[-1] // f, mean, basis, lift, table)


def _embedded(patches: Tensor, mean: Tensor, basis: Tensor, lift: float) -> Tensor:
    points = (patches - mean) @ basis
    if lift == 0:
        return points
    return F.normalize(torch.cat([points, torch.full_like(points[..., :1], lift)], -1), dim=-1)


def _nearest(points: Tensor, table: Tensor) -> Tensor:
    """The nearest row of the table [K, D] to each point [n, D]: [n] int64."""
    half = table.square().sum(1) / 2
    return torch.cat([(part @ table.T - half).argmax(1) for part in torch.split(points, PART)])
