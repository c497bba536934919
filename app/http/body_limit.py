"""Limits on the size and the arrival time of a request body, counted as it arrives.

Knows ASGI messages. Knows nothing of what a body means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keys import known_caller
from app.service import Service

MAX_BODY = 2 * 2**20  # bytes, beyond every body that a schema allows
MAX_BODY_S = 30.0  # from the head of the request to the end of its body
CLOSE = {"Connection": "close"}  # the rest of the body is not read


class BodyLimit:
    """Middleware: 413 once a body exceeds MAX_BODY bytes, whatever its Content-Length; 408 after MAX_BODY_S.

    larger: other limits in bytes, by the beginning of the path, for those who need no key or have one.
    """

    def __init__(self, app: ASGIApp, service: Service, larger: Mapping[str, int]) -> None:
        self._app, self._service, self._larger = app, service, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, with a `receive` that counts."""
        path = scope.get("path", "")
        limit = next((most for start, most in self._larger.items() if path.startswith(start)), MAX_BODY)
        if limit > MAX_BODY and known_caller(self._service, scope) is None:
            limit = MAX_BODY  # a long body is parsed before its sender is refused
        size, whole, deadline = 0, False, asyncio.get_running_loop().time() + MAX_BODY_S

        async def counted() -> Message:
            nonlocal size, whole
            if whole:  # the next message is the disconnect
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body was not there within {MAX_BODY_S:.0f} s", CLOSE) from None
            size, whole = size + len(message.get("body", b"")), not message.get("more_body", False)
            if size > limit:
                raise HTTPException(413, f"the body is longer than {limit} bytes")
            return message

        await self._app(scope, counted, send)
