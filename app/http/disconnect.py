"""Disconnects: work for a caller that hangs up is cancelled.

Knows ASGI messages. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import HTTPException, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, and cancel it if the caller of `request` hangs up first; the body must have been read."""
    working, listening = asyncio.create_task(work), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the caller hung up")  # nobody reads it
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
