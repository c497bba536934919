"""A caller that hangs up: what was being done for them is given up.

Knows ASGI messages. Knows nothing of what is being done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import HTTPException, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`; where the caller of `request`, whose body has been read, hangs up before, cancel it."""
    working, listening = asyncio.create_task(work), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the caller hung up")  # which nobody will read
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
