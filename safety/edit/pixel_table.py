"""Row updates of the pixel table: projection out of the Harmful Space, or re-mapping to the safe partners' codes.

Pure maths on tables. Rows of weight 0 stay bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_NORM = 0.3  # of a unit row after projection; a shorter one has lost what it was
HARMLESS = 0.1  # only codes of a smaller weight may stand in for others
SAME = 1e-4  # rows this close are one row
CANDIDATES = 8  # for the nearest row
OFF_MANIFOLD = 0.99  # quantile of nearest-neighbour distances beyond which a row is like no code


@dataclass(frozen=True)
class Partners:
    """The safe prompt's likeliest codes at T tokens that the unsafe prompt caused.

    code: [T] int64; partner: [T, p] int64; share: [T, p] float32, the safe prompt's probabilities.
    """

    code: Tensor
    partner: Tensor
    share: Tensor

    def of(self, code: int) -> tuple[Tensor, Tensor]:
        """Partner codes and their probabilities at every occurrence of `code`, flat."""
        rows = self.code == code
        return self.partner[rows].flatten(), self.share[rows].flatten()


def project_rows(table: Tensor, weights: Tensor, basis: Tensor, mean: Tensor, strength: float) -> Tensor:
    """e_k - b w_k Pi (e_k - mean): [K, D] from table [K, D], weights [K], basis [D, k], mean [D], b in [0, 1]."""
    return table - strength * weights[:, None] * ((table - mean) @ basis @ basis.T)


def remap_rows(table: Tensor, weights: Tensor, partners: Partners, strength: float) -> Tensor:
    """(1 - b w_k) e_k + b w_k sum_m a_km e_m: [K, D]; a row without harmless partners stays.

    a_km is how often code m is the partner of k, times how close the two are.
    """
    moved = table.clone()
    reach = 2 * (table - table.mean(0)).square().sum(1).mean()
    for code in weights.nonzero().flatten().tolist():
        others, share = partners.of(code)
        gap = (table[others] - table[code]).square().sum(1)
        share = share * (weights[others] < HARMLESS) * torch.exp(-gap / reach)
        if share.sum() > 0:
            part = strength * weights[code]
            moved[code] = (1 - part) * table[code] + part * (share @ table[others]) / share.sum()
    return moved


def nearest_distances(rows: Tensor, table: Tensor) -> Tensor:
    """Distance of each row [B, D] to the nearest row of table [K, D] that differs from it: [B]."""
    squares = table.square().sum(1)
    # In parts, since K x K distances would be gigabytes.
    return torch.cat([_nearest(part, table, squares) for part in torch.split(rows, 1024)])


def _nearest(rows: Tensor, table: Tensor, squares: Tensor) -> Tensor:
    """Exact distances of the likeliest CANDIDATES by the product form, which is fast and loses small distances.

    Where a row that is none of them may be nearer, by the bound of its rounding errors, all are computed: the result is
    that of all exact distances, to the bit.
    """
    own, eps = rows.square().sum(1), torch.finfo(rows.dtype).eps
    error = 2 * eps * (table.shape[1] + 8) * (own + squares.max())
    likeliest, index = torch.addmm(squares, rows, table.T, alpha=-2).topk(min(CANDIDATES, len(table)), largest=False)
    nearest = _least(rows[:, None], table[index])[:, 0]
    unsure = nearest.square() > likeliest[:, -1] + own - error
    if unsure.any():
        nearest[unsure] = _least(rows[unsure], table)
    return nearest


def _least(rows: Tensor, table: Tensor) -> Tensor:
    """The least distance of each row [..., B, D] to rows of table [..., K, D] that differ from it: [..., B]."""
    distances = torch.cdist(rows, table, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(distances < SAME, torch.inf).min(-1).values


def off_manifold(table: Tensor, normalised: bool) -> Tensor:
    """The distance, of unit rows in normalised families, beyond which a row is like no code of the table: a scalar."""
    rows = table / _norms(table, normalised)
    return nearest_distances(rows, rows).quantile(OFF_MANIFOLD)


def update_pixels(
    table: Tensor,
    weights: Tensor,
    basis: Tensor,
    mean: Tensor,
    partners: Partners,
    strength: float,
    normalised: bool,
    limit: Tensor,
) -> Tensor:
    """The weighted projection, with re-mapping of rows that it would spoil: [K, D] float32.

    A row is spoiled where its norm falls under LEAST_NORM of what it was (normalised families), or where it ends
    farther from every code than `limit`, the table's off_manifold. Normalised families keep each row's norm.
    """
    norms, touched = _norms(table, normalised), weights > 0
    rows = table / norms
    projected = project_rows(rows, weights, basis, mean, strength)
    lengths = projected.norm(dim=1, keepdim=True) if normalised else torch.ones_like(norms)
    spoiled = lengths[:, 0] < LEAST_NORM
    projected = projected / lengths.clamp(min=LEAST_NORM)
    spoiled[touched] |= nearest_distances(projected[touched], rows) > limit
    moved = torch.where(spoiled[:, None], _remapped(rows, weights, partners, strength, normalised), projected)
    return torch.where(touched[:, None], moved * norms, table)


def remap_pixels(table: Tensor, weights: Tensor, partners: Partners, strength: float, normalised: bool) -> Tensor:
    """Re-mapping of every weighted row: [K, D] float32. Normalised families keep each row's norm."""
    norms = _norms(table, normalised)
    moved = _remapped(table / norms, weights, partners, strength, normalised)
    return torch.where((weights > 0)[:, None], moved * norms, table)


def _norms(table: Tensor, normalised: bool) -> Tensor:
    """The norm of each row [K, 1] in normalised families, and 1 in others."""
    return table.norm(dim=1, keepdim=True) if normalised else torch.ones(table.shape[0], 1)


def _remapped(rows: Tensor, weights: Tensor, partners: Partners, strength: float, normalised: bool) -> Tensor:
    """Re-mapped rows; where a mean of partners is too short to have a direction, the row stays."""
    moved = remap_rows(rows, weights, partners, strength)
    if not normalised:
        return moved
    lengths = moved.norm(dim=1, keepdim=True)
    return torch.where(lengths < LEAST_NORM, rows, moved / lengths.clamp(min=LEAST_NORM))
