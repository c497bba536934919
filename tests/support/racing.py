"""Real processes that do one thing each at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

from core.errors import SafeCBError

Task = Callable[..., Any]


def race(task: Task, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run task(*call) for every call, each in a process of its own, all let go together.

    Returns, in no order, what each returned, or the name of the SafeCBError it raised. `task` is a plain function of a
    module; any other error fails the race.
    """
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(len(calls)), context.Queue()
    runners = [context.Process(target=_run, args=(start, answers, task, call)) for call in calls]
    for runner in runners:
        runner.start()
    results = [answers.get(timeout=120) for _ in runners]
    for runner in runners:
        runner.join()
    assert [runner.exitcode for runner in runners] == [0] * len(runners), results
    return results


def _run(start: Barrier, answers: Queue[Any], task: Task, call: tuple[Any, ...]) -> None:
    start.wait(timeout=120)
    try:
        answers.put(task(*call))
    except SafeCBError as error:
        answers.put(type(error).__name__)
    except BaseException as error:
        answers.put(repr(error))
        raise
