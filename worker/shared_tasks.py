"""Batches of a run shared between processes: the improve job writes down what it needs, helpers take some of it.

    tasks/<name>.json   a task that is not done yet       tasks/<name>.lock   held by whoever does it
    tasks/codebook-<hash>.safetensors                     the codebooks that tasks name

A lock falls when its holder dies, and a result is kept in one step; so a task is done, whoever dies, and doing it
twice changes nothing. Knows files. The queue that brings helpers is in `worker/assistant.py`.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from codebook.identity import Identity
from codebook.tensors import codebook_hash, pack, unpack
from codebook.value import Codebook
from core.atomic import replace_file
from core.storage import naming
from engine.model import ImageModel, Sampling
from safety.runtime.executor import DrawTask, JudgeTask, Make, Task, Tell
from safety.runtime.result_cache import ResultCache

POLL_EVERY_S = 0.1


class SharedExecutor:
    """The crew of an improve job. `call` asks for helpers; it is called whenever there is something to share."""

    def __init__(self, cache: ResultCache, call: Callable[[], None]) -> None:
        self._cache, self._call = cache, call
        self._folder = TaskFolder(cache.folder / "tasks")

    def results(self, tasks: Sequence[Task], make: Make, tell: Tell) -> list[dict[str, Tensor]]:
        """See safety.runtime.executor.Crew."""
        missing = [task for task in tasks if not self._cache.has(task.name)]
        if len(missing) > 1:  # one alone is begun here at once
            for task in missing:
                self._folder.post(task)
            self._call()
        while missing:
            if not any(self._folder.do(task, self._cache, make) for task in missing):
                tell(len(tasks) - len(missing))
                time.sleep(POLL_EVERY_S)
            missing = [task for task in missing if not self._cache.has(task.name)]
        for task in tasks:
            self._folder.remove(task.name)
        return [self._cache.tensors(task.name, partial(make, task)) for task in tasks]


class TaskFolder:
    """The tasks of one job that wait or are being done, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def post(self, task: Task) -> None:
        """Write a task down."""
        with naming(self._folder):
            self._folder.mkdir(exist_ok=True)
        name = codebook_hash(task.codebook)
        book = self._folder / f"codebook-{name}.safetensors"
        if not book.exists():
            replace_file(book, save(pack(task.codebook)))
        if isinstance(task, DrawTask):
            how = [asdict(sampling) for sampling in task.how]
            content: dict[str, Any] = {"prompts": task.prompts, "how": how, "weighed": task.weighed}
        else:
            content = {"tokens": task.tokens.tolist()}
        replace_file(self._folder / f"{task.name}.json", json.dumps({**content, "codebook": name}).encode())

    def names(self) -> list[str]:
        """The names of the tasks written down, in order."""
        return sorted(path.stem for path in self._folder.glob("[!.]*.json"))

    def read(self, name: str, model: ImageModel) -> Task | None:
        """A task written down, for the model it was written for; None where it is gone."""
        try:
            content = json.loads((self._folder / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        book = self._codebook(content["codebook"], model)
        if "tokens" in content:
            return JudgeTask(name, torch.tensor(content["tokens"]), book)
        how = tuple(Sampling(**sampling) for sampling in content["how"])
        return DrawTask(name, tuple(content["prompts"]), how, book, content["weighed"])

    def do(self, task: Task, cache: ResultCache, make: Make) -> bool:
        """Do a task unless it is done or somebody does it; whether it was done here."""
        with self._claim(task.name) as mine:
            if not mine or cache.has(task.name):
                return False
            cache.tensors(task.name, partial(make, task))
            return True

    def remove(self, name: str) -> None:
        """Take a task away that is done."""
        for suffix in ("json", "lock"):
            (self._folder / f"{name}.{suffix}").unlink(missing_ok=True)

    def _codebook(self, name: str, model: ImageModel) -> Codebook:
        tensors = load((self._folder / f"codebook-{name}.safetensors").read_bytes())
        return unpack("draft", Identity.of(model.base_codebook(), {}), tensors)

    @contextmanager
    def _claim(self, name: str) -> Iterator[bool]:
        """Hold the task against all others until the block ends; False where another holds it."""
        with naming(self._folder):
            self._folder.mkdir(exist_ok=True)
            lock = (self._folder / f"{name}.lock").open("ab")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
