"""Admission of requests: 503 while the server shuts down or holds too many connections, except for /health.

Knows ASGI messages and the service's state. Knows nothing of any one route.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http import problems
from app.http.connections import CROWDED
from app.service import Service
from core.errors import Stopping, Unavailable

OPEN = "/health/"  # prefix of the paths that are always served
BODY_S = 1.0  # for reading the body: a caller still sending when the connection ends might not read the response


class Door:
    """Middleware that refuses requests; during a shutdown every response closes its connection."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal, started = self._refusal(scope), False

        async def watched(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if refusal is not None or self._service.stopping:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            if refusal is None:
                await self._app(scope, receive, watched)
            else:
                await _skip_body(receive)
                await problems.of(refusal)(scope, receive, watched)
        except asyncio.CancelledError:  # it outlasted the shutdown: a body without end, a response that nobody reads
            if not started:
                await problems.of(Stopping())(scope, receive, watched)

    def _refusal(self, scope: Scope) -> Unavailable | None:
        if scope["path"].startswith(OPEN):
            return None
        if self._service.stopping:
            return Stopping()
        if CROWDED in scope.get("state", ()):
            return Unavailable("the server holds as many connections as it can", retry_after=5.0)
        return None


async def _skip_body(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while (await receive()).get("more_body", False):
                pass
