"""HEAD on every GET: the same status and headers, without the body. Knows ASGI messages."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """Middleware: routes answer HEAD as GET; of the answer the head alone goes out, also of a stream."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, HEAD as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}

        async def head_alone(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope.update({name: inner[name] for name in ("route",) if name in inner})
                await send(message)
                await send({"type": "http.response.body"})

        await self._app(inner, receive, head_alone)
