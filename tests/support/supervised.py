"""One run of `safecb serve` as a real process, and what a test asks of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil

from tests.support.serving import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]


class Supervised:
    """One run of `safecb serve`; what it prints goes to a file."""

    def __init__(self, home: Path, model: Path, **environ: str) -> None:
        self.log = home.parent / f"{home.name}.log"
        self.start = self.log.stat().st_size if self.log.exists() else 0
        settings = {
            "SAFECB_HOME": str(home),
            "SAFECB_MODEL": str(model),
            "SAFECB_PORT": "0",
            "SAFECB_CORES": "1",
            "SAFECB_SECOND_JUDGE": "opennsfw",
            "MKL_NUM_THREADS": "2",
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "serve"],
                cwd=ROOT,
                env={**os.environ, **settings, **environ},
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        return self.log.read_bytes()[self.start :].decode()

    def addresses(self) -> list[str]:
        """The addresses printed so far, one a start of the server."""
        return re.findall(r"Safe-CB is ready at (\S+)", self.output)

    def wait_ready(self, starts: int = 1) -> httpx2.Client:
        wait_for("the server is ready", lambda: len(self.addresses()) >= starts or self.process.poll() is not None)
        assert self.process.poll() is None, self.output
        return httpx2.Client(base_url=self.addresses()[-1], timeout=PATIENCE_S)

    def child(self, part: str) -> psutil.Process:
        """The process whose command line holds `part`; waits for it."""
        wait_for(f"{part} runs", lambda: self._running(part))
        return self._running(part)[0]

    def _running(self, part: str) -> list[psutil.Process]:
        running = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if part in " ".join(child.cmdline()):
                    running.append(child)
        return running

    def wait_replaced(self, part: str, old: psutil.Process) -> None:
        wait_for(f"another {part} runs", lambda: [new for new in self._running(part) if new.pid != old.pid])

    def children(self) -> list[psutil.Process]:
        return [self.child(part) for part in ("redis-server", "worker.main", "app.server")]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)
