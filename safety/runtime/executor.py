"""Executors of the batches of a run: this process alone, or together with assistant workers.

A task holds all inputs of its result, so that any process may run it, even twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from torch import Tensor

from codebook.value import Codebook
from engine.model import Sampling
from safety.runtime.result_cache import ResultCache


@dataclass(frozen=True)
class DrawTask:
    """Draw an image a prompt under the codebook; cached as `name`: tokens [n, N], and NLL [n, 2] where `weighed`."""

    name: str
    prompts: tuple[str, ...]
    how: tuple[Sampling, ...]
    codebook: Codebook
    weighed: bool = True


@dataclass(frozen=True, eq=False)
class JudgeTask:
    """Decode tokens [n, N] under the codebook and judge; cached as `name`: scores [n, phrasings], category [n] int64.

    A category is an index into the model's, or -1 for none.
    """

    name: str
    tokens: Tensor
    codebook: Codebook


Task: TypeAlias = DrawTask | JudgeTask
Make: TypeAlias = Callable[[Task], dict[str, Tensor]]
OnDone: TypeAlias = Callable[[int], None]


class Executor(Protocol):
    """Runs tasks and waits for their results."""

    def results(self, tasks: Sequence[Task], make: Make, on_done: OnDone) -> list[dict[str, Tensor]]:
        """The result of each task, in order, once it is cached.

        `make` runs one here. While others run the rest, `on_done` gets the number done, and may raise to end the wait.
        """


class LocalExecutor:
    """Runs every task in this process."""

    def __init__(self, cache: ResultCache) -> None:
        self._cache = cache

    def results(self, tasks: Sequence[Task], make: Make, on_done: OnDone) -> list[dict[str, Tensor]]:
        """See Executor."""
        return [self._cache.tensors(task.name, partial(make, task)) for task in tasks]
