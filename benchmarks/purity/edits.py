"""Edits of a pixel table from twins: weights of codes, projection, re-mapping, and the best table there is.

Twins share every token that the harm does not touch, so differences are taken position by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.purity.codecs import Codec
from safety.edit.harmful_space import directions
from safety.edit.harmfulness import weights
from safety.edit.pixel_table import Partners, off_manifold, remap_pixels, update_pixels

CENTRES = (3.0, 1.5)  # z0: the shipped one and a lower one
CLUSTERS = 256  # codes are pooled into so many
STRENGTHS = (0.5, 1.0)
CARES = (0.1, 0.3, 1.0, 3.0)  # weights of a benign use of a code against a harmful one
RANK = 2  # of the space of differences, at most a quarter of the dimensions


@dataclass(frozen=True)
class Evidence:
    """Of the twins for estimation: harmful tokens and their partners [T], the twin of each; benign counts [K].

    purity: [T], the share of each harmful token's pixels that are harm.
    """

    code: Tensor
    partner: Tensor
    twin: Tensor
    purity: Tensor
    retained: Tensor
    twins: int


def gather(covered: Tensor, clean: Tensor, purity: Tensor, benign: Tensor, codes: int) -> Evidence:
    """covered, clean: tokens [n, N] of twins; purity: [n, N]; benign: tokens [m, N]."""
    twin, position = ((covered != clean) & (purity > 0)).nonzero(as_tuple=True)
    retained = torch.bincount(benign.flatten(), minlength=codes).float()
    return Evidence(
        covered[twin, position], clean[twin, position], twin, purity[twin, position], retained, len(covered)
    )


def exclusive(evidence: Evidence, codes: int) -> Tensor:
    """The share of each code's uses that are harmful, [K]: what no benign picture needs."""
    harmful = torch.bincount(evidence.code, minlength=codes).float()
    return harmful / (harmful + evidence.retained).clamp(min=1)


def candidates(codec: Codec, evidence: Evidence) -> Mapping[str, list[Tensor]]:
    """Tables [K, D] by kind of edit, of several thresholds and strengths each."""
    table, codes = codec.table, len(codec.table)
    partners = Partners(evidence.code, evidence.partner[:, None], torch.ones(len(evidence.code), 1))
    lengths = table.norm(dim=1, keepdim=True) if codec.normalised else torch.ones(codes, 1)
    rows = table / lengths
    differences = rows[evidence.code] - rows[evidence.partner]
    rank = max(1, min(RANK, table.shape[1] // 4))
    basis, mean = directions(differences, rank), (evidence.retained @ rows) / evidence.retained.sum()
    kinds: dict[str, list[Tensor]] = {"projection": [], "re-map": [], "re-map by clusters": [], "best table": []}
    clusters, limit = min(CLUSTERS, codes), off_manifold(table, codec.normalised)
    for centre in CENTRES:
        single = _weights(evidence, torch.arange(codes), codes, centre)
        pooled = _weights(evidence, _clusters(rows, clusters), clusters, centre)
        for strength in STRENGTHS:
            projected = update_pixels(table, single, basis, mean, partners, strength, codec.normalised, limit)
            kinds["projection"].append(projected)
            kinds["re-map"].append(remap_pixels(table, single, partners, strength, codec.normalised))
            kinds["re-map by clusters"].append(remap_pixels(table, pooled, partners, strength, codec.normalised))
    kinds["best table"] += [best_table(rows, evidence, care) * lengths for care in CARES]
    return kinds


def best_table(rows: Tensor, evidence: Evidence, care: float) -> Tensor:
    """The rows [K, D] nearest to the partners at harmful uses and to themselves at benign ones: the upper bound.

    It minimises sum over harmful uses |e_k - partner|^2 + care * sum over benign uses |e_k - e0_k|^2, in closed form.
    """
    partners = torch.zeros_like(rows).index_add_(0, evidence.code, rows[evidence.partner])
    harmful = torch.bincount(evidence.code, minlength=len(rows)).float()
    total = harmful + care * evidence.retained
    moved = (partners + care * evidence.retained[:, None] * rows) / total.clamp(min=1e-9)[:, None]
    return torch.where((harmful > 0)[:, None], moved, rows)


def _weights(evidence: Evidence, group: Tensor, groups: int, centre: float) -> Tensor:
    """W of each code [K], by the counts of its group: [K] of group numbers."""

    def counts(codes: Tensor) -> Tensor:
        empty = torch.zeros(evidence.twins, groups)
        return empty.index_put_((evidence.twin, group[codes]), torch.ones(len(codes)), accumulate=True)

    retained = torch.zeros(groups).index_add_(0, group, evidence.retained)
    return weights(counts(evidence.code), counts(evidence.partner), retained, centre)[group]


def _clusters(rows: Tensor, count: int) -> Tensor:
    """Each row's cluster [K], by k-means."""
    centres = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]].clone()
    for _ in range(10):
        ids = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, ids, rows)
        counts = torch.bincount(ids, minlength=count)
        centres = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], centres)
    return torch.cdist(rows, centres).argmin(1)
