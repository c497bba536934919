"""Atomic files, safe under crashes and concurrent writers: locks, replacement in one step, appended lines.

All functions raise NoRoom and NoAccess, naming the file, when the disk is full or not accessible. The remains of a
failed write are removed or ignored.

Knows bytes and folders on a POSIX disk. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from core.storage import naming

_KEEP_SIZE = 1  # fallocate's flag


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (created if missing) against every other thread and process.

    Waits without a timeout; the kernel releases the lock when its holder dies. Not reentrant: a thread that takes the
    same lock twice deadlocks.
    """
    with naming(path):
        handle = path.open("ab")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a child forked in between shares the open file and would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` and fsync. Not atomic: for files without readers."""
    with naming(path):
        _write(path, data)


def read_file(path: Path) -> bytes:
    """Return the content of `path`. Raises FileNotFoundError if it does not exist."""
    with naming(path):
        return path.read_bytes()


def list_folder(path: Path) -> list[str]:
    """Return the names in the folder `path`, in any order; none if it does not exist."""
    with naming(path), suppress(FileNotFoundError):
        return os.listdir(path)
    return []


def replace_file(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically: readers, and a crash, see either the old bytes or the new ones.

    The caller holds the lock of `path`: the temporary file has a fixed name, so that crashes leave no litter.
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


def read_or_create(path: Path, content: Callable[[], bytes], mode: int = 0o666) -> bytes:
    """Return what `path` holds; where it is missing, create it: of several that try, one wins, and all return its."""
    with suppress(FileNotFoundError):
        return read_file(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    sync_folder(path.parent)
    return read_file(path)


def beside(path: Path) -> Path:
    """Return the temporary file that `replace_file` renames to `path`."""
    return path.with_name(f".{path.name}.tmp")


def hold_room(path: Path, size: int) -> None:
    """Reserve `size` bytes of the disk beyond the end of `path`, created if missing; content and length do not change.

    Later writes there succeed on a full disk. Reserves what the disk has room for, and nothing where the file system
    does not support it (on Linux ext4, XFS and tmpfs do).
    """
    with suppress(OSError, AttributeError), _opened(path) as handle:
        end = os.fstat(handle.fileno()).st_size
        ctypes.CDLL(None).fallocate(handle.fileno(), _KEEP_SIZE, ctypes.c_int64(end), ctypes.c_int64(size))


def holds_room(path: Path) -> bool:
    """Whether a file has space of its own on the disk, written or reserved."""
    with suppress(OSError):
        return path.stat().st_blocks > 0
    return False


def reveal_folder(hidden: Path, final: Path) -> None:
    """Rename a finished folder to its final name, atomically and durably. Both have the same parent folder."""
    sync_folder(hidden)
    with naming(final):
        hidden.rename(final)
    sync_folder(final.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line (without a newline in it) and fsync; the caller holds the lock of `path`.

    A last line torn by an earlier crash or a full disk has no newline; readers ignore it, and it is cut off here.
    """
    with naming(path), path.open("a+b") as handle:
        handle.seek(0)
        data = handle.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # truncating to the same length would still release the space reserved by `hold_room`
            handle.truncate(whole)
        handle.write(line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    if whole == 0:
        sync_folder(path.parent)


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines of `path`, oldest first; none if it does not exist."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    return data.split(b"\n")[:-1]


def sync_folder(path: Path) -> None:
    """Fsync the folder `path`, so that the names in it are durable."""
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
    """Open `path`, created if missing, without truncating it: that would release the space it has reserved."""
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))
