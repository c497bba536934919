"""Middleware that counts and logs responses, without their queries.

Knows ASGI messages and the counters. Knows nothing of any one route.
"""

from __future__ import annotations

import logging
import time
from http import HTTPMethod
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics.counts import Counts

log = logging.getLogger(__name__)

METHODS = frozenset(HTTPMethod)
OTHER = "other"  # a method that HTTP has not: anything a caller likes
UNMATCHED = "unmatched"  # route of a path that none has; a path itself might be anything


class ResponseCounter:
    """Middleware: logs each response, counts it by method, route and status, and times those that are not streams."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its response once it is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, streams = time.perf_counter(), 0, False

        async def watched(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = any(value.startswith(b"text/event-stream") for _, value in message.get("headers", ()))
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                seconds = None if streams else time.perf_counter() - began
                method, path = scope["method"], quote(scope["path"])
                self._counts.responded(method if method in METHODS else OTHER, _route(scope), status, seconds)
                facts = {"method": method, "path": path, "status": status, "seconds": seconds}
                log.info("%s %s %d", method, path, status, extra=facts)

        await self._app(scope, receive, watched)


def _route(scope: Scope) -> str:
    path: str = getattr(scope.get("route"), "path", UNMATCHED)
    return path
