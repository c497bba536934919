"""A server process of any code on any host: of another release, or in a network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx2

from tests.support.servers.s3 import free_port
from tests.support.serving import PATIENCE_S
from tests.support.supervised import ROOT


class HostServer:
    """`app.server` with a home of its own.

    code: the folder of the release. within, address: the beginning of its command, and where it listens.
    """

    def __init__(
        self,
        home: Path,
        environ: Mapping[str, str],
        code: Path = ROOT,
        within: Sequence[str] = (),
        address: str = "127.0.0.1",
    ) -> None:
        home.mkdir()
        self.log, port = home.with_suffix(".log"), free_port()
        own = {"SAFECB_HOME": str(home), "SAFECB_HOST": address, "SAFECB_PORT": str(port), "SAFECB_CORES": "1"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "app.server"],
                cwd=code,
                env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", **own, **environ},
                stdout=output,
                stderr=output,
            )
        self.http = httpx2.Client(base_url=f"http://{address}:{port}", timeout=PATIENCE_S)

    def is_ready(self) -> bool:
        """Whether it can draw; fails the test where it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(httpx2.TransportError):
            return self.http.get("/health/ready").status_code == 200
        return False

    def epoch(self) -> int:
        """The epoch that it draws under."""
        return int(self.http.get("/codebooks/active").json()["epoch"])

    def close(self) -> None:
        """Kill it."""
        self.http.close()
        self.process.kill()
        self.process.wait()
