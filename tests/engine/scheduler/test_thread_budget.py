"""The thread budget: shares of the cores, and never more helper threads than cores."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Thread

import pytest
import torch

from cli.serve import server_environ
from engine.scheduler import thread_budget as cores
from engine.scheduler.thread_budget import ThreadBudget, count_cores


def taken(how: str, shared: ThreadBudget) -> int:
    """The threads that torch computes with in a new thread that takes its cores so."""
    counts = []

    def take() -> None:
        getattr(shared, how)()
        counts.append(torch.get_num_threads())

    thread = Thread(target=take)
    thread.start()
    thread.join()
    return counts[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 64])
def test_the_two_never_have_more_cores_than_there_are(count: int) -> None:
    shared = ThreadBudget(count)
    finish, alone = taken("take_to_postprocess", shared), taken("take_to_draw", shared)
    with shared.postprocessing():
        beside = taken("take_to_draw", shared)
    assert finish == max(1, count // 4)
    # OpenMP counts helpers: one fewer than its cores for each of the two, beside the process's first thread.
    assert 1 + (alone - 1) + (finish - 1) == count
    assert beside + finish == max(2, count)
    assert taken("take_one", shared) == 1


# What torch computes with in a thread that was given none, in one that was given two cores, and in the first one.
THREADS = """
from threading import Thread
import torch
from engine.scheduler.thread_budget import ThreadBudget

def other():
    print(torch.get_num_threads())

def draw():
    ThreadBudget(2).take_to_draw()
    torch.zeros(100_000).add_(1)
    thread = Thread(target=other)
    thread.start()
    thread.join()
    print(torch.get_num_threads())

torch.zeros(100_000).add_(1)
thread = Thread(target=draw)
thread.start()
thread.join()
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_cores_are_of_one_thread_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=server_environ(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "2", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="asked of the system there")
@pytest.mark.parametrize(
    ("quota", "count"), [("", 2), ("max 100000", 2), ("100000 100000", 1), ("120000 100000", 2), ("900000 100000", 2)]
)
def test_available_are_whole_cores_within_the_quota(quota: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> str:
        return quota if path.endswith("cpu.max") else {"0": "0,2", "1": "1,3", "2": "0,2"}[path.split("/")[5][3:]]

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(cores, "_read", read)
    assert count_cores() == count


@pytest.mark.skipif(sys.platform != "linux", reason="asked of the system there")
def test_where_the_kernel_says_nothing_each_is_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    monkeypatch.setattr(cores, "_read", lambda path: "")
    assert count_cores() == 3


@pytest.mark.parametrize(
    ("environ", "cores"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "3", "SAFECB_CORES": "2"}, "2"),
        ({"OMP_NUM_THREADS": "4,2"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
)
def test_openmps_number_of_threads_is_the_number_of_cores(environ: dict[str, str], cores: str | None) -> None:
    result = server_environ(environ | {"MKL_NUM_THREADS": "8", "PATH": "/bin"})
    assert result.get("SAFECB_CORES") == cores
    assert result["OMP_NUM_THREADS"] == "1" and result["PATH"] == "/bin" and "MKL_NUM_THREADS" not in result
