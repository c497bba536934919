"""Tuning: repair of image quality inside the null space of the Harmful Space. Only the tuned part of a codebook moves.

Knows tables, features and losses; the images and features to train on are handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from codebook.value import HeadEdit
from safety.edit.head_edit import TeacherPairs, without
from safety.edit.pixel_table import nearest_distances

T = TypeVar("T")

EDGES = 0.5  # lp: weight of the distance between image gradients
DRIFT = 0.01  # ld: weight of the drift penalty
PIXEL_RATE = 0.005  # of the mean distance between neighbouring codes, an Adam step
OUTPUT_RATE = 1e-3
BENIGN_WEIGHT = 0.25
CHECK_EVERY = 10
PATIENCE = 5  # checks on half B without gain before the end


@dataclass(frozen=True)
class PixelTuningData:
    """Images to keep as they are, by their tokens [n, N] int64: `train` moves the table, `check` (half B) stops it."""

    train: Tensor
    check: Tensor


@dataclass
class _Best(Generic[T]):
    """Early stopping on half B: the best value so far by its loss, and the checks without gain since."""

    loss: float
    value: T
    stale: int = 0

    def update(self, loss: float, value: T) -> bool:
        """Take in a check; whether the last PATIENCE checks brought no gain."""
        self.stale = 0 if loss < self.loss else self.stale + 1
        if loss < self.loss:
            self.loss, self.value = loss, value
        return self.stale == PATIENCE


def tune_pixels(
    start: Tensor,
    base: Tensor,
    basis: Tensor,
    use: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
    data: PixelTuningData,
    steps: int,
    batch: int,
    generator: torch.Generator,
    on_step: Callable[[int], None],
) -> Tensor:
    """Return the tuned table [K, D] float32: images as under `base`, and nothing moved inside the space.

    start, base: [K, D]; basis: [D, k]; use: [K] benign counts R; decode(tokens, table) is differentiable in the table.
    After every Adam step the component of the whole move in the space is removed: projecting the gradient alone is not
    enough, for Adam's scaling leaves the null space.
    """
    # Double: the null-space bound must survive thousands of float32 roundings.
    origin, anchor = start.double(), base.double()
    table = origin.clone().requires_grad_()
    gap = nearest_distances(base, base)
    pull = (1 + use / use.mean().clamp(min=1e-9))[:, None].double() / gap.square().mean()
    weight, best = DRIFT, _Best(_held_out(decode, data.check, start, base), origin)
    optimiser = torch.optim.Adam([table], lr=PIXEL_RATE * float(gap.mean()))
    for step in range(steps):
        chosen = data.train[torch.randint(data.train.shape[0], (batch,), generator=generator)]
        loss = image_distance(decode(chosen, table.float()), decode(chosen, base).detach())
        loss = loss + weight * (pull * (table - anchor).square()).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if _project(table, origin, basis.double(), gap.double()):
            weight *= 2
            with torch.no_grad():
                table.copy_(best.value)
        on_step(step)
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            held = _held_out(decode, data.check, table.detach().float(), base)
            if best.update(held, table.detach().clone()):
                break
    return best.value.float()


@torch.no_grad()
def _project(table: Tensor, origin: Tensor, basis: Tensor, gap: Tensor) -> bool:
    """Remove the move's component in the space, in place. True if a row is farther than `gap` [K] from its origin."""
    table -= (table - origin) @ basis @ basis.T
    return bool(((table - origin).norm(dim=1) > gap).any())


def image_distance(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of images [B, 3, H, W] and, weighted EDGES, of their gradients; a scalar."""
    total = (images - targets).abs().mean()
    for axis in (2, 3):
        total = total + EDGES * (images.diff(dim=axis) - targets.diff(dim=axis)).abs().mean()
    return total


@torch.no_grad()
def _held_out(decode: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, table: Tensor, base: Tensor) -> float:
    return float(image_distance(decode(tokens, table), decode(tokens, base)))


@dataclass(frozen=True)
class HeadTuningData:
    """Tuning data of a head edit: rows with their targets, benign rows [B, M] to leave, and half B."""

    train: TeacherPairs
    benign: Tensor
    check: TeacherPairs


def tune_output(
    edit: HeadEdit,
    head: Callable[[Tensor], Tensor],
    data: HeadTuningData,
    steps: int,
    rows: int,
    generator: torch.Generator,
    on_step: Callable[[int], None],
) -> HeadEdit:
    """Return the edit, of one expert, with its tuned part (down, up) trained; basis, mean and router stay.

    The loss is the KL divergence of the edited logits from the safe prompt's, plus that from the base on benign
    rows. The tuned part reads (I - Pi)(g - mu0) only, and is kept free of the space after every step.
    """
    down, up = (t.clone().requires_grad_() for t in (edit.down, edit.up))
    optimiser = torch.optim.Adam([down, up], lr=OUTPUT_RATE)
    spread = torch.linspace(0, data.check.features.shape[0] - 1, rows).long()  # over all of half B's pairs
    check = TeacherPairs(data.check.features[spread], data.check.targets[spread])
    best = _Best(divergence(edit, head, check).item(), edit)
    for step in range(steps):
        train, benign = _sample(data, rows, generator)
        moving = replace(edit, down=down, up=up)
        loss = divergence(moving, head, train) + BENIGN_WEIGHT * divergence(moving, head, benign)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        with torch.no_grad():
            down.copy_(without(down[0], edit.basis[0])[None])
        on_step(step)
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            here = replace(edit, down=down.detach().clone(), up=up.detach().clone())
            with torch.no_grad():
                held = divergence(here, head, check).item()
            if best.update(held, here):
                break
    return best.value


def divergence(edit: HeadEdit, head: Callable[[Tensor], Tensor], data: TeacherPairs) -> Tensor:
    """Mean KL(target || edited) over rows, in nats; a scalar, differentiable in the edit."""
    targets = head(data.targets).detach().log_softmax(-1)
    return kl_div(head(edit.apply(data.features)).log_softmax(-1), targets, log_target=True, reduction="batchmean")


def _sample(data: HeadTuningData, rows: int, generator: torch.Generator) -> tuple[TeacherPairs, TeacherPairs]:
    chosen = torch.randint(data.train.features.shape[0], (rows,), generator=generator)
    benign = data.benign[torch.randint(data.benign.shape[0], (rows // 2,), generator=generator)]
    return TeacherPairs(data.train.features[chosen], data.train.targets[chosen]), TeacherPairs(benign, benign)
