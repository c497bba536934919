"""Task folder: batches of a run shared between the improve job, which writes them, and assistant workers.

    tasks/<name>.json   a pending task                    tasks/<name>.lock   held by the process that runs it
    tasks/codebook-<hash>.safetensors                     the codebooks of the tasks

The kernel releases a lock when its holder dies, and results are stored atomically; so every task is done in spite of
crashes, and running one twice is harmless. Knows files. `worker/assistant.py` has the queue of the assistants.
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
from engine.machine import machine_of
from engine.model import ImageModel, Sampling
from safety.runtime.executor import DrawTask, JudgeTask, Make, OnDone, Task
from safety.runtime.result_cache import ResultCache

POLL_EVERY_S = 0.1


class SharedExecutor:
    """The executor of an improve job. `call` calls assistant workers; it is called whenever tasks are shared.

    machine: the fingerprint of the job's machine: only others like it may run its tasks.
    """

    def __init__(self, cache: ResultCache, call: Callable[[], None], machine: str) -> None:
        self._cache, self._call, self._machine = cache, call, machine
        self._folder = TaskFolder(cache.folder / "tasks")

    def results(self, tasks: Sequence[Task], make: Make, on_done: OnDone) -> list[dict[str, Tensor]]:
        """See safety.runtime.executor.Executor."""
        missing = [task for task in tasks if not self._cache.has(task.name)]
        if len(missing) > 1:  # a single task starts here immediately
            for task in missing:
                self._folder.post(task, self._machine)
            self._call()
        while missing:
            if not any(self._folder.do(task, self._cache, make) for task in missing):
                on_done(len(tasks) - len(missing))
                time.sleep(POLL_EVERY_S)
            missing = [task for task in missing if not self._cache.has(task.name)]
        for task in tasks:
            self._folder.remove(task.name)
        return [self._cache.tensors(task.name, partial(make, task)) for task in tasks]


class TaskFolder:
    """The pending and running tasks of one job, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def post(self, task: Task, machine: str) -> None:
        """Write a task. machine: the fingerprint of the job's; others leave it to it."""
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
        replace_file(
            self._folder / f"{task.name}.json", json.dumps({**content, "codebook": name, "machine": machine}).encode()
        )

    def names(self) -> list[str]:
        """Return the names of the tasks, in order."""
        return sorted(path.stem for path in self._folder.glob("[!.]*.json"))

    def read(self, name: str, model: ImageModel) -> Task | None:
        """Return a task for `model`, the model it was written for; None if it is gone, or for another machine."""
        try:
            content = json.loads((self._folder / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        if content.get("machine") != machine_of(model):
            return None
        book = self._codebook(content["codebook"], model)
        if "tokens" in content:
            return JudgeTask(name, torch.tensor(content["tokens"]), book)
        how = tuple(Sampling(**sampling) for sampling in content["how"])
        return DrawTask(name, tuple(content["prompts"]), how, book, content["weighed"])

    def do(self, task: Task, cache: ResultCache, make: Make) -> bool:
        """Run a task unless it is done or claimed; return whether it was run here."""
        with self._claim(task.name) as mine:
            if not mine or cache.has(task.name):
                return False
            cache.tensors(task.name, partial(make, task))
            return True

    def remove(self, name: str) -> None:
        """Remove a task that is done."""
        for suffix in ("json", "lock"):
            (self._folder / f"{name}.{suffix}").unlink(missing_ok=True)

    def _codebook(self, name: str, model: ImageModel) -> Codebook:
        tensors = load((self._folder / f"codebook-{name}.safetensors").read_bytes())
        return unpack("draft", Identity.of(model.base_codebook(), {}), tensors)

    @contextmanager
    def _claim(self, name: str) -> Iterator[bool]:
        """Hold the lock of the task until the block ends; gives False if another process holds it."""
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
