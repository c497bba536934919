"""The mark of a living attempt: a lock on a file in the job's folder, which the kernel drops when the process dies.

It says who works, at once and even after kill -9. It does not say who may write: that is the journal's fence, which
also holds where two processes believe they own the same job.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.storage import naming


@contextmanager
def claim(folder: Path, attempt: int) -> Iterator[None]:
    """Hold the mark of `attempt` (from 1) of the job kept in `folder` until the block or the process ends."""
    path = _file(folder, attempt)
    with naming(path):
        lock = path.open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # blocks only while `is_claimed` looks
        yield


def is_claimed(folder: Path, attempt: int) -> bool:
    """Whether a living process holds the mark of `attempt`; False for an attempt that never was."""
    path = _file(folder, attempt)
    try:
        with naming(path), path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _file(folder: Path, attempt: int) -> Path:
    return folder / f"attempt-{attempt}.lock"
