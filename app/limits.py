"""How much a caller may send: counts the body as it arrives.

Knows ASGI messages. Knows nothing of what a body means.
"""

from __future__ import annotations

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 2 * 2**20  # bytes; the longest allowed list of prompts in JSON


class BodyLimit:
    """Answers 413 once a body grows beyond MAX_BODY bytes, whatever its Content-Length claims."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, with a `receive` that counts."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes")
            return message

        await self.app(scope, counted, send)
