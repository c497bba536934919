"""Who may call, and who may steer: optional API keys, and no calls that a foreign web page makes a browser send.

A page elsewhere could otherwise roll back the codebook of a server on its reader's own machine.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request

from app.service import Service


async def service_of(request: Request) -> Service:
    """Return the service of the app that took the request."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def api_key(
    authorization: Annotated[str, Header(description="Bearer and a key, where keys are set")] = "",
    x_api_key: Annotated[str, Header(description="a key, where keys are set")] = "",
) -> str:
    """Return the key that came with the request, "" where none did."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else x_api_key


ApiKey = Annotated[str, Depends(api_key)]


async def check_caller(
    request: Request,
    service: ServiceOf,
    key: ApiKey,
    sec_fetch_site: Annotated[str, Header(include_in_schema=False)] = "none",
) -> str:
    """Who calls, as a hash of the key or, where none are set, of the address.

    Refuses a foreign page (403), and a caller without one of the keys where keys are set (401); an operator's will do.
    """
    if sec_fetch_site in ("cross-site", "same-site"):
        raise HTTPException(403, "calls from another site's page are refused")
    settings = service.settings
    if settings.api_keys and not _is_one_of(key, settings.api_keys + settings.operator_keys):
        raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    caller = key if settings.api_keys else request.client.host if request.client else ""
    return hashlib.sha256(caller.encode("utf-8", "replace")).hexdigest()[:16]


Caller = Annotated[str, Depends(check_caller)]


async def check_operator(service: ServiceOf, key: ApiKey, caller: Caller) -> None:
    """Refuse (403) a caller without one of the operators' keys, where these are set."""
    keys = service.settings.operator_keys
    if keys and not _is_one_of(key, keys):
        raise HTTPException(403, "an operator's key is needed: Authorization: Bearer KEY")


OPERATORS = [Depends(check_operator)]  # the dependencies of a route that is theirs


def _is_one_of(key: str, keys: Sequence[str]) -> bool:
    # Every key is compared, in constant time: the answer's delay tells nothing of the keys.
    return any([hmac.compare_digest(key.encode("utf-8", "replace"), known.encode()) for known in keys])
