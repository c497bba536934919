"""Callers of several servers behind one address, and what they ask of a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event

import httpx2

from tests.support.serving import PATIENCE_S

LOST = 0  # in place of a status: the connection was closed without one


@contextmanager
def client(address: str, key: str | None = None) -> Iterator[httpx2.Client]:
    """A client of port 8000 of an address, with a key if there are keys."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=f"http://{address}:8000", timeout=PATIENCE_S, headers=headers) as http:
        yield http


def is_ready(http: httpx2.Client) -> bool:
    """Whether a server can draw."""
    with suppress(httpx2.TransportError):
        return http.get("/health/ready").status_code == 200
    return False


def drawn(http: httpx2.Client) -> int:
    """Images that a server has drawn."""
    lines = http.get("/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("safecb_images_total{"))


class Callers:
    """Four callers that draw at an address until the block ends. failed: statuses other than 200, by moment."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self._address, self._key, self._ended = address, key, Event()
        self.failed, self.longest_s, self.count = list[tuple[float, int]](), 0.0, 0

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the block ends."""
        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(self._call, number) for number in range(4)]
            try:
                yield
            finally:
                self._ended.set()
        for caller in callers:
            caller.result()

    def _call(self, number: int) -> None:
        with client(self._address, self._key) as http:
            while not self._ended.is_set():
                began = time.monotonic()
                status = LOST  # what HAProxy answers where it is not the first call of a caller's connection
                with suppress(httpx2.RemoteProtocolError):
                    body = {"prompt": f"a red apple {number}", "seed": self.count}
                    status = http.post("/generate", json=body).status_code
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.count += 1
                if status != 200:
                    self.failed.append((time.monotonic(), status))
