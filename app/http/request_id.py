"""Request ids: one for each request, in its response's `X-Request-Id` and in JSON logs. Knows ASGI messages."""

from __future__ import annotations

import re
from uuid import uuid4

from fastapi import Request
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.logs import about

HEADER = b"x-request-id"
SPAN_ATTRIBUTE = "safecb.request_id"
_OWN = re.compile(rb"[A-Za-z0-9._-]{1,100}")


class RequestId:
    """Middleware: takes the caller's `X-Request-Id` where it is letters, digits, `.`, `_` and `-`, or makes one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER, b"")
        id = given if _OWN.fullmatch(given) else uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = id.decode()
        about(request_id=id.decode())
        trace.get_current_span().set_attribute(SPAN_ATTRIBUTE, id.decode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (HEADER, id)]}
            await send(message)

        await self._app(scope, receive, named)


def id_of(request: Request) -> str:
    """Return the id of a request."""
    id: str = request.state.request_id
    return id
