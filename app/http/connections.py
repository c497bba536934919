"""Connection limits of a server: their number, and how long one may be silent.

uvicorn alone waits for a first request for ever, and accepts until the process has no file descriptor left. Knows
sockets and uvicorn; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # timeout for the head of a first request; later ones have uvicorn's keep-alive timeout
RESERVED = 128  # descriptors for files and Redis, and for connections accepted before they are counted
HEALTH_ROOM = 16  # connections beyond the limit that may call /health
CROWDED = "crowded"  # in the state of a request on such a connection
ACCEPTED_TOGETHER = 16  # connections accepted before they are counted
GRACE_S = 2  # for responses to requests that a shutdown has aborted


def most_connections() -> int:
    """Return the number of connections that leaves the process enough file descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - RESERVED, limit // 4)


class Protocol(H11Protocol):
    """uvicorn's protocol with a timeout for silence: the keep-alive clock runs from the start until a whole head.

    A connection beyond the limit replaces the one that has been silent longest. If none is silent, it may call
    /health only.
    """

    most = most_connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the keep-alive clock, and make room if the limit is exceeded."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse the data; unlike in uvicorn, the clock runs on until `handle_events` has a request."""
        self.conn.receive_data(data)
        self.handle_events()

    @property
    def is_open(self) -> bool:
        """Whether a request may still come on it."""
        return not self.transport.is_closing()

    @property
    def is_gone(self) -> bool:
        """Whether its descriptor is free, or will be at the next turn of the event loop."""
        return not self.is_open and not self.transport.get_write_buffer_size()

    def _make_room(self) -> None:
        others = [c for c in self.connections if isinstance(c, Protocol) and c is not self and not c.is_gone]
        silent = {clock.when(): c for c in others if (clock := c.timeout_keep_alive_task) and c.is_open}
        count = len(others)
        if silent and count >= self.most:
            silent[min(silent)].timeout_keep_alive_handler()
            count -= 1
        if count >= self.most + HEALTH_ROOM:
            self.transport.abort()
        elif count >= self.most:
            self.app_state = {**self.app_state, CROWDED: True}


def configured(app: ASGIApp, trusted_proxies: Sequence[str] = ()) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`; X-Forwarded-For and -Proto count from trusted proxies alone."""
    return uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        access_log=False,  # its lines have the query, so the signatures of links too
        backlog=ACCEPTED_TOGETHER,
        timeout_graceful_shutdown=GRACE_S,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
    )
