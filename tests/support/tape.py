"""A recorder for a CPU that replays as a CUDA graph does: the same operations on the same addresses, and no Python.

The operations are those of a CPU: what a GPU's kernels do instead is tested elsewhere.
"""

# ruff: noqa: ANN401  (operations take and give anything)

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.runner.cuda_graphs import Replay

# What a graph cannot hold: values that the host sees or sends, and shapes that depend on values.
UNRECORDABLE = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh"}


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation, to be done again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        masked = name.startswith("index") and any(each.dtype == torch.bool for each in _tensors(args[1]))
        assert name not in UNRECORDABLE and not masked, f"{name} cannot be recorded"

        def work() -> Any:
            return operation(*args, **(kwargs or {}))

        result = work()

        def again() -> None:
            for old, new in zip(_tensors(result), _tensors(work()), strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)

        self.steps.append(again)
        return result


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def record(compute: Replay) -> Replay:
    """Compute thrice, then once on tape: by torch's operators alone, since what C computes leaves nothing on it."""
    for _ in range(3):
        compute()
    with patch("engine.runner.sampling.native_noise", lambda right: None), Tape() as tape:
        output = compute()

    def replay() -> Tensor:
        for step in tape.steps:
            step()
        return output

    return replay
