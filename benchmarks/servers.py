"""Server processes of the benchmarks: start, readiness, memory and end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 300.0


@dataclass(frozen=True)
class Running:
    """A server at `url`."""

    url: str
    process: psutil.Process

    def memory_mb(self) -> float:
        """Resident memory of the process, in MB."""
        return float(self.process.memory_info().rss) / 1e6


@contextmanager
def running(command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run `python -m command` until the block ends; it prints "ready at URL" once it serves."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=output, stderr=output, env={**os.environ, **(environ or {})}
        )
    try:
        yield Running(_address(process, log), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(r"ready at (\S+)", log.read_text(encoding="utf-8")):
            return match[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")
