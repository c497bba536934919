"""Claim of a live attempt: a lock on a file in the job's folder, which the kernel releases when the process dies.

The claim shows immediately whether an attempt lives, even after kill -9. Permission to write is the journal's fencing
token, which also holds where two processes believe they own the same job.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.storage import naming


@contextmanager
def claim(folder: Path, attempt: int) -> Iterator[None]:
    """Hold the claim of `attempt` (from 1) of the job in `folder` until the block or the process ends."""
    path = _file(folder, attempt)
    with naming(path):
        lock = path.open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # blocks only while `is_claimed` reads
        yield


def is_claimed(folder: Path, attempt: int) -> bool:
    """Return whether a live process holds the claim of `attempt`; False for an attempt that never began."""
    path = _file(folder, attempt)
    try:
        with naming(path), path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def has_claim(folder: Path, attempt: int) -> bool:
    """Return whether the attempt began on this machine, dead or alive."""
    return _file(folder, attempt).exists()


def _file(folder: Path, attempt: int) -> Path:
    return folder / f"attempt-{attempt}.lock"
