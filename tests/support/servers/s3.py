"""A real S3 server for a test, moto's, in a process of its own; and a line to it that can be cut, or made to lie.

Other servers are in other_s3.py.
"""

from __future__ import annotations

import os
import random
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import boto3  # type: ignore[import-untyped]
import httpx2
import pytest

from tests.support.serving import wait_for

# In one thread: moto looks whether there is an object, and then writes it; of two threads both may win.
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
KEY, SECRET, REGION = "someone", "secret", "us-east-1"
CONDITION = re.compile(rb"if-none-match:", re.IGNORECASE)


class S3:
    """One S3 server at a port of `host`, with KEY and SECRET. is_strict: whether it checks signatures."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, is_strict: bool = False) -> None:
        self.port, self.is_strict = port, is_strict
        self.url = f"http://{host}:{port}"
        self._buckets = 0

    def bucket(self) -> str:
        """Make a bucket and return the URL of a folder in it."""
        self._buckets += 1
        name = f"bucket-{self._buckets}-{os.getpid()}"
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
        boto3.client("s3", endpoint_url=self.url, **keys).create_bucket(Bucket=name)
        return f"s3://{name}/codebooks"

    def answers(self) -> bool:
        """Whether the server answers, be it with a refusal."""
        with suppress(httpx2.TransportError):
            return httpx2.get(self.url, timeout=2).status_code < 500
        return False


@contextmanager
def moto(host: str = "127.0.0.1", port: int | None = None) -> Iterator[S3]:
    """Run moto's S3 server until the block ends, at a free port unless one is named."""
    server = S3(port or free_port(host), host)
    with running([sys.executable, "-c", SERVER, host, str(server.port)]):
        wait_for("the S3 server answers", server.answers)
        yield server


@contextmanager
def running(command: Sequence[str], **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a silent process until the block ends."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def use(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the standard variables of this process and its children to an endpoint."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_REGION", REGION)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


class Line:
    """A TCP line to an S3 server.

    cut: no connection stays or comes. lost: the share of writes that are carried out and not answered.
    """

    def __init__(self, server: S3) -> None:
        self.cut, self.lost, self._blind = False, 0.0, False
        self._server, self._random = server, random.Random(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def blind(self) -> None:
        """Take the condition of a create out on the way, as servers do that ignore it."""
        if self._server.is_strict:
            pytest.skip("this S3 server checks signatures: nothing can be taken out on the way")
        self._blind = True

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
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._server.port)) as server:
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
                        data = CONDITION.sub(b"x-none-match-:", data) if self._blind else data
                    (server if one is client else client).sendall(data)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing uses."""
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
