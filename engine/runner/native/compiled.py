"""Compilation of the C sources beside it, once for each user and version of theirs, where there is a C compiler.

Knows files and the compiler; knows nothing of models.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

log = logging.getLogger(__name__)

HEADER, *SOURCES = (Path(__file__).parent / name for name in ("vector.h", "forward.c", "noise.c"))
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-mfma", "-mf16c")
PROCESSORS = {  # by what torch takes one for: the numbers in a vector, and the flags for it
    "AVX512": (16, ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw")),
    "AVX2": (8, ("-mavx2",)),
}
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Library:
    """The compiled sources, and torch's library, of which it uses functions; lanes: the numbers in a vector."""

    source: ctypes.CDLL
    torch: ctypes.CDLL
    lanes: int

    def of_torch(self, name: str) -> int | None:
        """Return the address of a function of torch's library; None where it has none of this name."""
        try:
            return ctypes.cast(getattr(self.torch, name), ctypes.c_void_p).value
        except AttributeError:
            return None


@cache
def library() -> Library | None:
    """Return the compiled sources; None on another processor than it is for, and where it cannot be compiled."""
    compiler, capability = shutil.which("gcc") or shutil.which("cc"), torch.backends.cpu.get_cpu_capability()
    if platform.machine() != "x86_64" or capability not in PROCESSORS or compiler is None:
        return None
    lanes, own = PROCESSORS[capability]
    digest = hashlib.sha256(repr((source_code(), FLAGS, own)).encode()).hexdigest()[:16]
    try:
        target = _folder() / f"decode-{digest}.so"
        if not target.is_file():
            _compile([compiler, *FLAGS, *own], target)
        return Library(ctypes.CDLL(str(target)), ctypes.CDLL("libtorch_cpu.so"), lanes)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.info("no decode steps in C: %s", error)
        return None


def source_code() -> tuple[str, ...]:
    """Return the text of the sources."""
    return tuple(source.read_text(encoding="utf-8") for source in (HEADER, *SOURCES))


def _folder() -> Path:
    """The folder of caches of this user. Raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safecb"


def _compile(compiler: Sequence[str], target: Path) -> None:
    """Compile to a file that is there whole or not at all. Raises OSError and SubprocessError."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as aside:
        output = Path(aside) / target.name
        command = [*compiler, *map(str, SOURCES), "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        output.replace(target)
