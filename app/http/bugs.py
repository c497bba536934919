"""Errors that nobody expected: logged with their stack, answered with a 500 like any other answer.

Without it they would end outside of all middlewares, without request id, count or shape. Knows ASGI messages.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http import problems

log = logging.getLogger(__name__)


class Bugs:
    """Middleware: answers an unexpected error with a problem document, unless an answer has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; an error after the beginning of an answer is raised, which ends the connection."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            log.exception("%s: the server failed", scope["method"])
            await problems.of_bug()(scope, receive, send)
