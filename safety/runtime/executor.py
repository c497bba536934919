"""Who makes the batches of a run: this process alone, or with others that take some off it.

A task says everything that its result follows from, so that it does not matter who makes it, or whether twice.
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
    """Draw an image a prompt under the codebook; kept as `name`: tokens [n, N], and surprise [n, 2] where `weighed`."""

    name: str
    prompts: tuple[str, ...]
    how: tuple[Sampling, ...]
    codebook: Codebook
    weighed: bool = True


@dataclass(frozen=True, eq=False)
class JudgeTask:
    """Decode tokens [n, N] under the codebook and judge; kept as `name`: scores [n, phrasings], category [n] int64.

    A category is a place among the model's, or -1 for none.
    """

    name: str
    tokens: Tensor
    codebook: Codebook


Task: TypeAlias = DrawTask | JudgeTask
Make: TypeAlias = Callable[[Task], dict[str, Tensor]]
Tell: TypeAlias = Callable[[int], None]


class Executor(Protocol):
    """Sees to it that tasks are done."""

    def results(self, tasks: Sequence[Task], make: Make, tell: Tell) -> list[dict[str, Tensor]]:
        """The result of each task, in order, once it is kept.

        `make` makes one here; while others make the rest, `tell` hears how many are done, and may raise to end it.
        """


class LocalExecutor:
    """Makes every task itself."""

    def __init__(self, cache: ResultCache) -> None:
        self._cache = cache

    def results(self, tasks: Sequence[Task], make: Make, tell: Tell) -> list[dict[str, Tensor]]:
        """See Crew."""
        return [self._cache.tensors(task.name, partial(make, task)) for task in tasks]
