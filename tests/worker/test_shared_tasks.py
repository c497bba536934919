"""Attacks on shared batches: assistants that die, hang, come late or come in numbers never change what a run makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from redis import Redis
from rq import Queue, SimpleWorker
from torch import Tensor

from cli.redis_server import EmbeddedRedis
from codebook.tensors import codebook_hash
from core.wire import HELP_FUNCTION, HELP_QUEUE
from engine.machine import machine_of
from engine.model import Sampling
from records.jobs.claim import claim
from records.journal import Journal
from safety.loop import Cancelled, improve
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.runtime.executor import DrawTask, JudgeTask, LocalExecutor, Task
from safety.runtime.model_runner import ModelRunner
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import prepare_run
from tests.safety.test_loop import PLAN, REQUEST, Heard
from tests.support.redis_home import embedded_redis
from tests.support.serving import wait_for
from tests.support.toy_model import ToyModel
from worker.assistant import Caller
from worker.shared_tasks import SharedExecutor, TaskFolder

ROOT = Path(__file__).parents[2]
HELP = """
import os, sys, time, torch
from core.settings import Settings
from tests.safety.test_loop import PLAN
from tests.support.toy_model import ToyModel
from worker.assistant import help_with

class Noting(ToyModel):
    def draw(self, requests, on_step=None):
        with open(sys.argv[2], "a") as notes:
            notes.write(f"{os.getpid()}\\n")
        time.sleep(float(sys.argv[3]))
        return super().draw(requests, on_step)

torch.set_num_threads(1)
help_with(sys.argv[1], Settings.from_environ(os.environ), lambda settings: Noting(), PLAN)
"""

MACHINE = machine_of(ToyModel())


class Site:
    """A running job in a home folder, and the assistant processes of a test."""

    def __init__(self, home: Path) -> None:
        self.home, self.journal = home, Journal(home / "jobs")
        self.job = self.journal.create("improve", {}).id
        self.attempt = self.journal.begin_attempt(self.job)
        self.notes = home / "notes"
        self.cache = ResultCache(self.journal.path(self.job) / "work")
        self.assistants: list[subprocess.Popen[bytes]] = []

    def assistant(self, pause_s: float = 0.0) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "SAFECB_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HELP, self.job, str(self.notes), str(pause_s)]
        self.assistants.append(subprocess.Popen(command, cwd=ROOT, env=environ))
        return self.assistants[-1]

    def helped(self) -> int:
        return len(self.notes.read_text().splitlines()) if self.notes.exists() else 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    torch.set_num_threads(1)
    site = Site(tmp_path)
    with claim(site.journal.path(site.job), site.attempt):
        yield site
    for assistant in site.assistants:
        assistant.kill()
        assistant.wait()


def shared(site: Site) -> Callable[[ResultCache], SharedExecutor]:
    return lambda cache: SharedExecutor(cache, lambda: None, MACHINE)


def tasks(count: int) -> list[Task]:
    base = ToyModel().base_codebook()
    return [DrawTask(f"drawn-{i}", ("a cat", f"a dog {i}"), (Sampling(i), Sampling(99)), base) for i in range(count)]


def maker(site: Site) -> Callable[[Task], dict[str, Tensor]]:
    return ModelRunner(ToyModel(), site.cache, Heard(), 2).make


def test_a_run_with_assistants_makes_the_same_codebook(site: Site, tmp_path: Path) -> None:
    model = ToyModel()
    own = prepare_run(model, REQUEST, EmojiPolicy(), model, tmp_path / "alone", Heard(), PLAN)
    (alone,) = improve(own, own.runner.base)
    site.assistant()
    site.assistant()
    common = prepare_run(model, REQUEST, EmojiPolicy(), model, site.cache.folder, Heard(), PLAN, shared(site))
    (helped,) = improve(common, common.runner.base)
    assert alone.codebook is not None and helped.codebook is not None
    assert codebook_hash(alone.codebook) == codebook_hash(helped.codebook)
    assert alone.figures == helped.figures
    assert site.helped() > 0
    assert TaskFolder(site.cache.folder / "tasks").names() == []


def test_assistants_do_what_the_job_itself_would(site: Site, tmp_path: Path) -> None:
    shared = tasks(6)
    shared.append(JudgeTask("judged-0", torch.arange(64)[None] % 96, ToyModel().base_codebook()))
    site.assistant()
    slow = maker(site)

    def make(task: Task) -> dict[str, Tensor]:
        wait_for("an assistant has begun", site.helped)
        return slow(task)

    results = SharedExecutor(site.cache, lambda: None, MACHINE).results(shared, make, lambda done: None)
    own = LocalExecutor(ResultCache(tmp_path / "own")).results(shared, slow, lambda done: None)
    assert site.helped() > 0
    for ours, theirs in zip(results, own, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_a_killed_assistant_held_is_done_by_the_job(site: Site) -> None:
    folder, shared = TaskFolder(site.cache.folder / "tasks"), tasks(2)
    for task in shared:
        folder.post(task, MACHINE)
    assistant = site.assistant(pause_s=3600)
    wait_for("the assistant holds a task", site.helped)
    reported: list[int] = []

    def tell(done: int) -> None:
        reported.append(done)
        assistant.send_signal(signal.SIGKILL)

    results = SharedExecutor(site.cache, lambda: None, MACHINE).results(shared, maker(site), tell)
    assert [part["tokens"].shape for part in results] == [(2, 64)] * 2
    assert reported and assistant.wait() == -signal.SIGKILL


def test_a_job_that_waits_for_an_assistant_can_be_ended(site: Site) -> None:
    folder, shared = TaskFolder(site.cache.folder / "tasks"), tasks(2)
    for task in shared:
        folder.post(task, MACHINE)
    site.assistant(pause_s=3600)
    wait_for("the assistant holds a task", site.helped)

    def tell(done: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        SharedExecutor(site.cache, lambda: None, MACHINE).results(shared, maker(site), tell)


def test_an_assistant_on_another_kind_of_machine_leaves_tasks_alone(site: Site) -> None:
    folder, shared = TaskFolder(site.cache.folder / "tasks"), tasks(2)
    folder.post(shared[0], "0123456789abcdef")
    assert folder.read(shared[0].name, ToyModel()) is None
    folder.post(shared[1], MACHINE)
    site.assistant()
    wait_for("the assistant has done its task", lambda: site.cache.has(shared[1].name))
    time.sleep(0.5)
    assert not site.cache.has(shared[0].name)


@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_an_assistant_leaves_when_its_job_ends(site: Site, end: str) -> None:
    assistant = site.assistant()
    time.sleep(0.1)
    assert assistant.poll() is None
    site.journal.update(site.job, attempt=site.attempt, status=end)  # type: ignore[arg-type]
    assert assistant.wait(60) == 0


def test_an_assistant_leaves_when_the_job_died(tmp_path: Path) -> None:
    site = Site(tmp_path)  # running by its record, and nobody holds its claim
    assert site.assistant().wait(60) == 0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with embedded_redis(tmp_path) as redis:
        yield redis


def test_each_idle_worker_is_asked_once(redis: EmbeddedRedis) -> None:
    with Redis.from_url(redis.url) as connection:
        queue = Queue(HELP_QUEUE, connection=connection, serializer="json")
        for number, state in enumerate(("idle", "busy", "idle")):
            worker = SimpleWorker([queue], name=f"w{number}", connection=connection, serializer="json")
            worker.register_birth()  # type: ignore[no-untyped-call]
            worker.set_state(state)
        Caller(redis.url, "a job")()
        Caller(redis.url, "a job")()
        assert queue.count == 2
        jobs = queue.get_jobs()
        assert {(job.func_name, tuple(job.args)) for job in jobs} == {(HELP_FUNCTION, ("a job",))}


def test_without_redis_nobody_comes_and_nothing_breaks(tmp_path: Path) -> None:
    Caller(f"unix://{tmp_path}/none.sock", "a job")()
    Caller(None, "a job")()
