"""Path prefix of a server behind a proxy: taken off at the outermost middleware, put back at the innermost.

Between the two a path is what the contract calls it, whether or not the proxy has cut its prefix off; beyond them it is
as ASGI wants it, so that addresses which the server makes have the prefix. Knows ASGI messages.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutRoot:
    """Middleware: a path loses the prefix, if it has it. root: "/pictures", or "" for none."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if self._root and scope["type"] == "http" and scope["path"].startswith(f"{self._root}/"):
            scope["path"] = scope["path"][len(self._root) :]
        await self._app(scope, receive, send)


class WithRoot:
    """Middleware: a path gets the prefix, and the scope says so."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if self._root and scope["type"] == "http":
            scope["path"], scope["root_path"] = self._root + scope["path"], self._root
        await self._app(scope, receive, send)
