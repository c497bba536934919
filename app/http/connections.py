"""Connections of a server: how many it holds, and how long one may be silent.

uvicorn waits for a first request for ever, and accepts until the process has no file descriptor left. Knows sockets and
uvicorn; knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import resource
import sys

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # within which the head of a first request is there; for the next ones it is uvicorn's keep-alive time
RESERVED = 128  # descriptors for files and Redis, and for what is accepted before it is counted
HEALTH_ROOM = 16  # connections beyond the most that may call health
CROWDED = "crowded"  # in the state of a request on such a connection
ACCEPTED_TOGETHER = 16  # connections, before those are counted
GRACE_S = 2  # for answers to callers whose requests are given up at a stop


def most_connections() -> int:
    """How many connections leave the process enough of the descriptors that it may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - RESERVED, limit // 4)


class Protocol(H11Protocol):
    """uvicorn's, with an end to silence: the keep-alive clock runs from the beginning, and only a whole head stops it.

    A connection beyond the most takes the place of the one that has been silent longest. Where none is silent, it may
    call health alone.
    """

    most = most_connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and make room."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Read what came; unlike in uvicorn, the clock runs on until `handle_events` has a request."""
        self.conn.receive_data(data)
        self.handle_events()

    @property
    def is_gone(self) -> bool:
        """Whether its descriptor is free, or will be as soon as the event loop comes round."""
        return self.transport.is_closing() and not self.transport.get_write_buffer_size()

    def _make_room(self) -> None:
        others = [c for c in self.connections if isinstance(c, Protocol) and c is not self and not c.is_gone]
        silent = {
            clock.when(): c for c in others if (clock := c.timeout_keep_alive_task) and not c.transport.is_closing()
        }
        count = len(others)
        if silent and count >= self.most:
            silent[min(silent)].timeout_keep_alive_handler()
            count -= 1
        if count >= self.most + HEALTH_ROOM:
            self.transport.abort()
        elif count >= self.most:
            self.app_state = {**self.app_state, CROWDED: True}


def configured(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    return uvicorn.Config(
        app, http=Protocol, log_config=None, backlog=ACCEPTED_TOGETHER, timeout_graceful_shutdown=GRACE_S
    )
