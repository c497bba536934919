"""The Harmful Space: the directions in which unsafe sides differ from safe ones, and its rank against noise.

Pure maths on differences [n, D]; the same for codes (D) and for head features (M).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DRAWS = 200  # random sign flips
QUANTILE = 0.95
ENERGY = 0.9
AGREEMENT = 0.8  # least principal-angle cosine between the halves
REPORTED = 16  # energies in a report
LEAST_REMAINDER = 1e-3  # a unit direction with a smaller remainder is already in the space


@dataclass(frozen=True)
class HarmfulSpace:
    """basis: [D, k] float32 with orthonormal columns, strongest first. The ranks are the bounds on k.

    energies, noise: squared singular values of the differences and their noise floor, [m] each, largest first.
    """

    basis: Tensor
    noise_rank: int
    energy_rank: int
    cap: int
    energies: Tensor
    noise: Tensor

    @property
    def rank(self) -> int:
        """k; 0 where no direction was found."""
        return self.basis.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """The ranks and the leading energies as JSON."""
        ranks = {"k": self.rank, "k_noise": self.noise_rank, "k_energy": self.energy_rank, "k_cap": self.cap}
        return ranks | {"energies": self.energies[:REPORTED].tolist(), "noise": self.noise[:REPORTED].tolist()}


def harmful_space(
    differences: Tensor, confidence: Tensor, first_half: Tensor, generator: torch.Generator
) -> HarmfulSpace:
    """The space of one category.

    differences: [n, D], one row d_j a pair; confidence: [n] c_j >= 0; first_half: bool [n], halves A and B.
    M = sum_j c_j d_j d_j^T is not centred: the mean shift is the signal.
    """
    rows = differences.double() * confidence.double().sqrt()[:, None]
    energies, noise = squared_singular_values(rows), noise_floor(rows, generator)
    noise_rank = leading(energies > noise)
    energy_rank = energy_above(energies[:noise_rank] - noise[:noise_rank])
    cap = max(1, rows.shape[1] // 4)
    rank = agreed_rank(rows[first_half], rows[~first_half], min(noise_rank, energy_rank, cap))
    return HarmfulSpace(directions(rows, rank).float(), noise_rank, energy_rank, cap, energies, noise)


def squared_singular_values(rows: Tensor) -> Tensor:
    """Of rows [n, D], largest first: [min(n, D)]."""
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0)


def noise_floor(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The QUANTILE of each squared singular value under random elementwise sign flips: [min(n, D)].

    Flipping whole rows would keep a shared direction; flipping elements leaves only the sizes.
    """
    flips = (torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1 for _ in range(DRAWS))
    draws = torch.stack([squared_singular_values(rows * flip) for flip in flips])
    return draws.quantile(QUANTILE, dim=0)


def leading(flags: Tensor) -> int:
    """The number of leading True flags [n]."""
    return int(flags.long().cumprod(0).sum())


def energy_above(energies: Tensor) -> int:
    """The number of leading energies [k] > 0 that make ENERGY of their sum."""
    if energies.numel() == 0:
        return 0
    shares = energies.cumsum(0) / energies.sum()
    return min(int((shares < ENERGY).sum()) + 1, energies.numel())


def directions(rows: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors of rows [n, D] as columns [D, rank], each with its largest entry positive."""
    basis: Tensor = torch.linalg.svd(rows, full_matrices=False)[2][:rank].T
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of the principal angles between orthonormal bases [D, a] and [D, b], largest first."""
    cosines: Tensor = torch.linalg.svdvals(first.T @ second)
    return cosines


def agreed_rank(first: Tensor, second: Tensor, rank: int) -> int:
    """The largest k <= rank for which the leading k directions of two halves [n, D] agree; 0 if none do."""
    rank = min(rank, first.shape[0], second.shape[0])
    one, two = directions(first, rank), directions(second, rank)
    agreeing = (k for k in range(rank, 0, -1) if principal_cosines(one[:, :k], two[:, :k]).min() >= AGREEMENT)
    return next(agreeing, 0)


def interleave(bases: Sequence[Tensor]) -> Tensor:
    """The columns of several [D, k_i] as one [D, sum k_i]: the first of each, then the second, ..."""
    longest = max(basis.shape[1] for basis in bases)
    return torch.stack([basis[:, i] for i in range(longest) for basis in bases if i < basis.shape[1]], 1)


def join(bases: Sequence[Tensor], limit: int) -> Tensor:
    """One orthonormal basis [D, k] float32, k <= limit, for the columns of several [D, k_i], first come first kept.

    A column adds only what is not yet in the space.
    """
    joined = torch.zeros(bases[0].shape[0], 0, dtype=torch.float64)
    for column in torch.cat([basis.double() for basis in bases], 1).T:
        fresh = column
        for _ in range(2):  # once leaves rounding errors, twice does not
            fresh = fresh - joined @ (joined.T @ fresh)
        if joined.shape[1] < limit and fresh.norm() > LEAST_REMAINDER:
            joined = torch.cat([joined, (fresh / fresh.norm())[:, None]], 1)
    return joined.float()
