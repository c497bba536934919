"""Storage errors by reason: a full disk, a read-only disk, too many open files.

Knows the system's error numbers. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil

from core.errors import NoAccess, NoRoom, NoStorage

_NETWORK = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ocfs2",
    )
)
PROBE_BYTES = 1 << 16  # a disk with less room than this counts as full

_NOT_PERMITTED = (NoAccess, "not permitted", "this process may not; correct its owner, mode or attributes")
_TOO_MANY = (
    NoAccess,
    "too many open files",
    "too many files are open; raise the limit (ulimit -n) if it does not pass",
)
_REASONS: Mapping[int, tuple[type[NoStorage], str, str]] = {
    errno.ENOSPC: (NoRoom, "full", "its disk is full; free some room"),
    errno.EDQUOT: (NoRoom, "quota used up", "the quota on its disk is used up; free some room or raise it"),
    errno.EROFS: (NoAccess, "read-only", "its disk is read-only; mount it for writing"),
    errno.EPERM: _NOT_PERMITTED,
    errno.EACCES: _NOT_PERMITTED,
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
    errno.EIO: (NoAccess, "failing", "its disk fails; the kernel's log says how"),
}


class Mount(Protocol):
    """A mounted file system, as psutil lists them."""

    @property
    def mountpoint(self) -> str:
        """Its folder."""

    @property
    def fstype(self) -> str:
        """Its type, as in /proc/mounts."""


@cache
def is_remote(folder: Path) -> bool:
    """Whether a folder lies on a file system that other machines may have mounted too."""
    return is_network(file_system(folder.resolve(), psutil.disk_partitions(all=True)))


def file_system(folder: Path, mounts: Iterable[Mount]) -> str:
    """Return the type of the file system that holds an absolute folder, "" if no mount does."""
    holders = [mount for mount in mounts if folder.is_relative_to(mount.mountpoint)]
    return max(holders, key=lambda mount: len(Path(mount.mountpoint).parts)).fstype if holders else ""


def is_network(kind: str) -> bool:
    """Whether file systems of a type, as /proc/mounts names it, are of a network; of FUSE all count as such."""
    return kind in _NETWORK or kind.startswith("fuse.")


def failure(path: Path, number: int) -> NoStorage:
    """Return the error that names `path` and the reason with this errno, a key of the table above."""
    kind, state, remedy = _REASONS[number]
    return kind(path, state, remedy)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn OSErrors of the block into NoRoom or NoAccess that name `path`; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in _REASONS:
            raise
        raise failure(path, error.errno) from error


def probe(path: Path) -> None:
    """Raise NoRoom or NoAccess unless `path` can be written: a folder is probed with a temporary file without a name.

    A full disk is not tried: a probe takes what there is before it fails, such as the room that an activation has just
    given back. A file is not opened: closing a file that SQLite has open would drop SQLite's locks. A missing file
    passes.
    """
    with naming(path):
        if path.is_dir():
            disk = shutil.disk_usage(path)  # some file systems have no size
            if disk.total and disk.free < PROBE_BYTES:
                raise failure(path, errno.ENOSPC)
            with tempfile.TemporaryFile(dir=path) as file:
                os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
        elif path.exists() and not os.access(path, os.W_OK):
            raise failure(path, errno.EACCES)
