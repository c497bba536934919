"""Real disks of a few MB for a test: filled to the last byte, freed, made read-only under whoever uses them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

SIZE_MB = 24
BLOCK = 4096


class SmallDisk:
    """A file system of SIZE_MB mounted on `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def fill(self, leaving: int = 0) -> None:
        """Take every byte that is free, but for `leaving` (whole blocks)."""
        with self._filler.open("ab", buffering=0) as filler:
            taken = -1
            while taken < (taken := _fill(filler)):  # what was freed before may come free with the sync
                pass
            filler.truncate(filler.seek(0, os.SEEK_END) // BLOCK * BLOCK - leaving)

    def free(self) -> None:
        """Give all of it back."""
        self._filler.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """What is opened from here on is read-only; what is open stays as it is, or nothing could be remounted."""
        _run("mount", "--bind", self.folder, self.folder)
        try:
            _run("mount", "-o", "remount,bind,ro", self.folder)
            yield
        finally:
            _run("umount", self.folder)


@contextmanager
def small_disk(folder: Path, kind: str = "tmpfs") -> Iterator[SmallDisk]:
    """Mount a fresh disk of a `kind`, tmpfs or ext4, on `folder`; skip the test where that is not permitted."""
    folder.mkdir()
    try:
        _mount(folder, kind)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {kind} can be mounted here, which takes root and its tools: {error}")
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", "--lazy", folder)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody, root included, may change `path` until the block ends; skip the test where that cannot be said."""
    try:
        _run("chattr", "+i", path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"chattr +i takes root and a file system that knows it: {error}")
    try:
        yield
    finally:
        _run("chattr", "-i", path)


def _fill(file: FileIO) -> int:
    """Append all that fits to a file, sync it, and return its size."""
    size = SIZE_MB << 20
    while size:
        try:
            while file.write(b"\0" * size):
                os.fsync(file.fileno())
        except OSError:
            size //= 2
    os.fsync(file.fileno())
    return file.seek(0, os.SEEK_END)


def _mount(folder: Path, kind: str) -> None:
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", folder)
        return
    image = folder.with_name(f"{folder.name}.img")
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    _run("mkfs.ext4", "-q", "-m", "0", "-b", BLOCK, image)
    _run("mount", "-o", "loop", image, folder)
    (folder / "lost+found").rmdir()


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
