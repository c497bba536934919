"""A real S3 server for a test, moto's, in a process of its own; and a line to it that can be cut, or made to lie."""

from __future__ import annotations

import os
import random
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
import pytest

from tests.support.serving import wait_for

# In one thread: moto looks whether there is an object, and then writes it; of two threads both may win.
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
CONDITION = re.compile(rb"if-none-match:", re.IGNORECASE)


class S3:
    """One S3 server. `bucket`: makes a bucket and gives its URL."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.process = port, process
        self.url = f"http://127.0.0.1:{port}"
        self._buckets = 0

    def bucket(self) -> str:
        """Make a bucket and return the URL of a folder in it."""
        self._buckets += 1
        name = f"bucket-{self._buckets}-{os.getpid()}"
        assert httpx2.put(f"{self.url}/{name}").status_code == 200
        return f"s3://{name}/codebooks"


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run moto's S3 server until the block ends."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server = S3(port, process)
        wait_for("the S3 server answers", lambda: _answers(server.url))
        yield server
    finally:
        process.kill()
        process.wait()


def use(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the standard variables of this process and its children to an endpoint."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "someone")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


class Line:
    """A TCP line to an S3 server.

    cut: no connection stays or comes. lost: the share of writes that are carried out and not answered. blind: whether
    the condition of a create is taken out on the way, as by the servers that ignore it.
    """

    def __init__(self, port: int) -> None:
        self.cut, self.lost, self.blind = False, 0.0, False
        self._target, self._random = port, random.Random(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no connection any more."""
        self.cut = True
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            silent = False
            while not self.cut:
                ready, _, _ = select.select([client, server], [], [], 0.05)
                for one in ready:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is server and silent:
                        return  # it has been carried out
                    if one is client:
                        silent = data.startswith(b"PUT") and self._random.random() < self.lost
                        data = CONDITION.sub(b"x-none-match-:", data) if self.blind else data
                    (server if one is client else client).sendall(data)


def free_port() -> int:
    """Return a port that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(url, timeout=2).status_code < 500
    return False
