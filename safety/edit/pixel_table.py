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
    # In parts, since K x K distances would be gigabytes; without the product form, which loses small distances.
    exact = "donot_use_mm_for_euclid_dist"
    parts = (torch.cdist(part, table, compute_mode=exact) for part in torch.split(rows, 1024))
    return torch.cat([part.masked_fill(part < SAME, torch.inf).min(1).values for part in parts])


def update_pixels(
    table: Tensor, weights: Tensor, basis: Tensor, mean: Tensor, partners: Partners, strength: float, normalised: bool
) -> Tensor:
    """The weighted projection, with re-mapping of rows that it would spoil: [K, D] float32.

    A row is spoiled where its norm falls under LEAST_NORM of what it was (normalised families), or where it ends
    farther from every code than codes are from each other. Normalised families keep each row's norm.
    """
    norms = table.norm(dim=1, keepdim=True) if normalised else torch.ones(table.shape[0], 1)
    rows = table / norms
    projected = project_rows(rows, weights, basis, mean, strength)
    lengths = projected.norm(dim=1, keepdim=True) if normalised else torch.ones_like(norms)
    spoiled = lengths[:, 0] < LEAST_NORM
    projected = projected / lengths.clamp(min=LEAST_NORM)
    touched = weights > 0
    limit = nearest_distances(rows, rows).quantile(OFF_MANIFOLD)
    spoiled |= touched & (nearest_distances(projected, rows) > limit)
    moved = torch.where(spoiled[:, None], _remapped(rows, weights, partners, strength, normalised), projected)
    return torch.where(touched[:, None], moved * norms, table)


def remap_pixels(table: Tensor, weights: Tensor, partners: Partners, strength: float, normalised: bool) -> Tensor:
    """Re-mapping of every weighted row: [K, D] float32. Normalised families keep each row's norm."""
    norms = table.norm(dim=1, keepdim=True) if normalised else torch.ones(table.shape[0], 1)
    moved = _remapped(table / norms, weights, partners, strength, normalised)
    return torch.where((weights > 0)[:, None], moved * norms, table)


def _remapped(rows: Tensor, weights: Tensor, partners: Partners, strength: float, normalised: bool) -> Tensor:
    """Re-mapped rows; where a mean of partners is too short to have a direction, the row stays."""
    moved = remap_rows(rows, weights, partners, strength)
    if not normalised:
        return moved
    lengths = moved.norm(dim=1, keepdim=True)
    return torch.where(lengths < LEAST_NORM, rows, moved / lengths.clamp(min=LEAST_NORM))
