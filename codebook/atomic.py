"""Files that survive crashes and company: locked, replaced in one step, appended line by line.

Knows bytes and folders on a POSIX disk. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made if missing) against every other thread and process.

    Waits as long as it takes; the kernel frees the lock when its holder dies. Not reentrant: a thread that takes the
    same lock twice waits for itself for ever.
    """
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a child forked meanwhile shares the open file and would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it. Not atomic: for files that nobody reads yet."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path` in one step: a reader, or a crash, meets the old bytes or the new ones.

    The caller holds the lock that guards `path`: the file beside it has a fixed name, so that crashes leave no litter.
    """
    beside = path.with_name(f".{path.name}.tmp")
    write_file(beside, data)
    beside.replace(path)
    sync_folder(path.parent)


def reveal_folder(hidden: Path, final: Path) -> None:
    """Rename a finished folder to its final name, in one step and durably. Both lie in the same parent folder."""
    sync_folder(hidden)
    hidden.rename(final)
    sync_folder(final.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line (without a newline in it) and wait until the disk has it; the caller holds the lock of `path`.

    A last line torn by an earlier crash has no newline; it never counted and is cut off here.
    """
    with path.open("a+b") as handle:
        handle.seek(0)
        whole = handle.read().rfind(b"\n") + 1
        handle.truncate(whole)
        handle.write(line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    if whole == 0:
        sync_folder(path.parent)


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines of `path`, oldest first; none where there is no such file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data.split(b"\n")[:-1]


def sync_folder(path: Path) -> None:
    """Wait until the disk knows the names in the folder `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
