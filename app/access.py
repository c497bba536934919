"""Who may call: optional API keys, and no calls that a foreign web page makes a browser send.

A page elsewhere could otherwise roll back the codebook of a server on its reader's own machine.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request

from app.service import Service


def service_of(request: Request) -> Service:
    """Return the service of the app that took the request."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def check_caller(
    request: Request,
    service: ServiceOf,
    authorization: Annotated[str, Header(description="Bearer and a key, where keys are set")] = "",
    x_api_key: Annotated[str, Header(description="a key, where keys are set")] = "",
    sec_fetch_site: Annotated[str, Header(include_in_schema=False)] = "none",
) -> str:
    """Who calls, as a hash of the key or, where none are set, of the address.

    Refuses a foreign page (403), and a caller without one of the keys where keys are set (401).
    """
    if sec_fetch_site in ("cross-site", "same-site"):
        raise HTTPException(403, "calls from another site's page are refused")
    scheme, _, token = authorization.partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else x_api_key
    keys = service.settings.api_keys
    # Every key is compared, in constant time: the answer's delay tells nothing of the keys.
    known = [hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()) for key in keys]
    if keys and not any(known):
        raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    caller = given if keys else request.client.host if request.client else ""
    return hashlib.sha256(caller.encode("utf-8", "replace")).hexdigest()[:16]


Caller = Annotated[str, Depends(check_caller)]
