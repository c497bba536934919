"""Authentication: optional API keys and operator keys, and protection against cross-site requests.

Without the latter, a page elsewhere could roll back the codebook of a server on its reader's own machine.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request

from app.service import Service
from codebook.live import ACTIVE
from core.settings import EVERYONE


async def service_of(request: Request) -> Service:
    """Return the service of the app that took the request."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def api_key(
    authorization: Annotated[str, Header(description="`Bearer KEY`, if the server requires keys.")] = "",
    x_api_key: Annotated[str, Header(description="A key, if the server requires keys.")] = "",
) -> str:
    """Return the key of the request, "" where it has none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else x_api_key


ApiKey = Annotated[str, Depends(api_key)]


async def check_caller(
    request: Request,
    service: ServiceOf,
    key: ApiKey,
    sec_fetch_site: Annotated[str, Header(include_in_schema=False)] = "none",
) -> str:
    """Return the caller's id: a hash of the key or, where no keys are set, of the address.

    Raises 403 for a cross-site request, 401 for a caller without a valid key where keys are set; an operator's key
    is valid too.
    """
    if sec_fetch_site in ("cross-site", "same-site"):
        raise HTTPException(403, "calls from another site's page are refused")
    settings = service.settings
    if settings.api_keys and not _is_one_of(key, settings.api_keys + settings.operator_keys):
        raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    caller = key if settings.api_keys else request.client.host if request.client else ""
    return hashlib.sha256(caller.encode("utf-8", "replace")).hexdigest()[:16]


Caller = Annotated[str, Depends(check_caller)]


async def is_operator(service: ServiceOf, key: ApiKey) -> bool:
    """Whether the caller is an operator: everyone, where no operators' keys are set."""
    keys = service.settings.operator_keys
    return not keys or _is_one_of(key, keys)


IsOperator = Annotated[bool, Depends(is_operator)]


async def check_operator(operator: IsOperator, caller: Caller) -> None:
    """Raise 403 for a caller without an operator's key, where these are set."""
    if not operator:
        raise HTTPException(403, "an operator's key is needed: Authorization: Bearer KEY")


OPERATORS = [Depends(check_operator)]  # dependencies of a route for operators only


def check_version(service: Service, operator: bool, version: str, field: str) -> None:
    """Raise 403 for a caller who may not name `version`, or any but the active one: v0 is the model without an edit."""
    if operator or service.settings.version_choice == EVERYONE or version in (ACTIVE, service.live.active.version):
        return
    raise HTTPException(403, f"{field}: {version!r} is not the active version; an operator's key is needed to name it")


def _is_one_of(key: str, keys: Sequence[str]) -> bool:
    # Every key is compared, in constant time: the delay of the response reveals nothing about the keys.
    return any([hmac.compare_digest(key.encode("utf-8", "replace"), known.encode()) for known in keys])
