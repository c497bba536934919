"""Files that survive crashes and company: locked, replaced in one step, appended line by line.

All of it raises NoRoom and NoAccess, naming the file, where the disk is full or does not let us. What a failed write
leaves is taken away or never counts.

Knows bytes and folders on a POSIX disk. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from core.storage import naming

_KEEP_SIZE = 1  # fallocate's flag


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made if missing) against every other thread and process.

    Waits as long as it takes; the kernel frees the lock when its holder dies. Not reentrant: a thread that takes the
    same lock twice waits for itself for ever.
    """
    with naming(path):
        handle = path.open("ab")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a child forked meanwhile shares the open file and would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it. Not atomic: for files that nobody reads yet."""
    with naming(path):
        _write(path, data)


def read_file(path: Path) -> bytes:
    """Return the content of `path`. Raises FileNotFoundError where there is none."""
    with naming(path):
        return path.read_bytes()


def list_folder(path: Path) -> list[str]:
    """Return the names in the folder `path`, in any order; none where there is no such folder."""
    with naming(path), suppress(FileNotFoundError):
        return os.listdir(path)
    return []


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path` in one step: a reader, or a crash, meets the old bytes or the new ones.

    The caller holds the lock that guards `path`: the file beside it has a fixed name, so that crashes leave no litter.
    """
    new = beside(path)
    with naming(path):
        try:
            _write(new, data)
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
    sync_folder(path.parent)


def beside(path: Path) -> Path:
    """Return where `replace_file` writes what is to become `path`."""
    return path.with_name(f".{path.name}.tmp")


def hold_room(path: Path, size: int) -> None:
    """Reserve `size` bytes of the disk behind the end of `path`, made if missing; its content and length stay.

    What is written there next needs no fresh room, and nobody else can take it. Does what the disk has room for, and
    nothing where the file system cannot reserve (it can on Linux: ext4, XFS, tmpfs).
    """
    with suppress(OSError, AttributeError), _opened(path) as handle:
        end = os.fstat(handle.fileno()).st_size
        ctypes.CDLL(None).fallocate(handle.fileno(), _KEEP_SIZE, ctypes.c_int64(end), ctypes.c_int64(size))


def reveal_folder(hidden: Path, final: Path) -> None:
    """Rename a finished folder to its final name, in one step and durably. Both lie in the same parent folder."""
    sync_folder(hidden)
    with naming(final):
        hidden.rename(final)
    sync_folder(final.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line (without a newline in it) and wait until the disk has it; the caller holds the lock of `path`.

    A last line torn by an earlier crash or a full disk has no newline; it never counted and is cut off here.
    """
    with naming(path), path.open("a+b") as handle:
        handle.seek(0)
        data = handle.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # to cut nothing off would still give away the room that is held behind the end
            handle.truncate(whole)
        handle.write(line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    if whole == 0:
        sync_folder(path.parent)


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines of `path`, oldest first; none where there is no such file."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    return data.split(b"\n")[:-1]


def sync_folder(path: Path) -> None:
    """Wait until the disk knows the names in the folder `path`."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    with _opened(path) as handle:
        handle.write(data)
        handle.truncate()
        handle.flush()
        os.fsync(handle.fileno())


def _opened(path: Path) -> BinaryIO:
    """Open `path`, made if missing, without emptying it first: that would give away the room it holds."""
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))
