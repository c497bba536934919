"""The head edit: the Harmful Space projected out of the features, and a low-rank map to the safe prompt's features.

Pure maths on features, one expert at a time. Knows nothing of which images an expert applies to (the router).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from codebook.router import HalfwayProbe, Router
from codebook.value import HeadEdit

RIDGE = 1e-2  # of the mean variance of the harmless features
BENIGN_WEIGHT = 0.25  # of a benign feature in the refit, next to 1 for one under a harmful prompt


@dataclass(frozen=True)
class TeacherPairs:
    """Features [R, M] float32 under the unsafe prompt, and their targets [R, M]: the features under the safe prompt.

    Both sides of a row have the same image history, so that they differ by the text alone.
    """

    features: Tensor
    targets: Tensor


def leading_part(basis: Tensor, strength: float) -> Tensor:
    """The strongest ceil(b k) of the directions [M, k]: an edit removes a direction or does not, so b counts them."""
    return basis[:, : math.ceil(strength * basis.shape[1])]


def harmless(features: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """(I - Pi)(g - mu0): [R, M] from features [R, M], mean [M], basis [M, k]; the input of the tuned part."""
    centred = features - mean
    return centred - (centred @ basis) @ basis.T


def refit(basis: Tensor, mean: Tensor, data: TeacherPairs, benign: Tensor, rank: int) -> HeadEdit:
    """The best edit of tuned rank <= `rank` in least squares: one expert, no router.

    It maps `data.features` to `data.targets` and benign features [B, M] to themselves. The benign rows restore what the
    projection takes from benign images, as far as the other directions predict it: the whitened form of the space.
    """
    rows = torch.cat([data.features, benign]).double()
    targets = torch.cat([data.targets, benign]).double()
    weight = torch.ones(rows.shape[0], 1, dtype=torch.float64)
    weight[data.features.shape[0] :] = BENIGN_WEIGHT
    read = harmless(rows, mean.double(), basis.double())
    missing = targets - mean.double() - read
    gram = read.T @ (weight * read)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=torch.float64)
    full = torch.linalg.solve(gram + ridge, read.T @ (weight * missing))
    # The leading directions of the fit's output, by its second moment: the best fit of that rank.
    right = torch.linalg.eigh(full.T @ gram @ full)[1].flip(1)[:, :rank]
    down = without(full @ right, basis.double())
    return HeadEdit(basis[None], mean, down.float()[None], right.T.float().contiguous()[None])


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """(I - Pi) of the columns of `rows` [M, r], which then read nothing of the space."""
    return rows - basis @ (basis.T @ rows)


def stack(
    edits: Sequence[HeadEdit],
    router: Router,
    probe: HalfwayProbe | None,
    guidance: float = 1.0,
    groups: Tensor | None = None,
) -> HeadEdit:
    """The experts of several edits with one mean and one tuned rank, in order; router and probe choose among them.

    groups: [e] int64, as in HeadEdit.
    """
    widest = max(edit.basis.shape[2] for edit in edits)
    basis = torch.cat([pad(edit.basis, (0, widest - edit.basis.shape[2])) for edit in edits])
    down, up = torch.cat([edit.down for edit in edits]), torch.cat([edit.up for edit in edits])
    return HeadEdit(basis, edits[0].mean, down, up, router, probe=probe, guidance=guidance, groups=groups)


def unstack(edit: HeadEdit) -> list[HeadEdit]:
    """Each expert as an edit of its own, without a router."""
    ones = [slice(i, i + 1) for i in range(edit.basis.shape[0])]
    return [HeadEdit(edit.basis[one], edit.mean, edit.down[one], edit.up[one]) for one in ones]
