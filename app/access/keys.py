"""Callers and what they may do: keys of a request, scopes of a route, and protection against cross-site requests.

Without the latter, a page elsewhere could roll back the codebook of a server on its reader's own machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request
from fastapi.params import Depends as Dependency
from starlette.types import Scope as ASGIScope

from app.access.key_ring import OPERATOR, Holder, Scope
from app.service import Service
from codebook.live import ACTIVE
from core.settings import EVERYONE


async def service_of(request: Request) -> Service:
    """Return the service of the app that took the request."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def keys_of(
    authorization: Annotated[str, Header(description="`Bearer KEY`, if the server requires keys.")] = "",
    x_api_key: Annotated[str, Header(description="A key, if the server requires keys.")] = "",
) -> list[str]:
    """Return the keys of the request: clients may have to send another service's key beside the right one."""
    return _keys(authorization, x_api_key)


Keys = Annotated[list[str], Depends(keys_of)]


@dataclass(frozen=True)
class Caller:
    """Who calls. id: the name of the key, or a hash of it or, without one, of the address."""

    id: str
    holder: Holder

    @property
    def name(self) -> str:
        """The name for the audit log."""
        return self.holder.name or OPERATOR


async def check_caller(
    request: Request,
    service: ServiceOf,
    keys: Keys,
    sec_fetch_site: Annotated[str, Header(include_in_schema=False)] = "none",
    sec_fetch_mode: Annotated[str, Header(include_in_schema=False)] = "",
) -> Caller:
    """Return who calls. Raises 403 for a request of another site's page, 401 without a valid key where one is needed.

    A link on another site's page may be followed: a navigation by GET changes nothing.
    """
    if sec_fetch_site in ("cross-site", "same-site") and (request.method, sec_fetch_mode) != ("GET", "navigate"):
        raise HTTPException(403, "calls from another site's page are refused")
    known = _caller(service, request, keys)
    if known is None:
        raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    return known


CallerOf = Annotated[Caller, Depends(check_caller)]


def known_caller(service: Service, scope: ASGIScope) -> str | None:
    """Return the id of who sends a request, from its head alone; None for a caller without a needed key."""
    request = Request(scope)
    keys = _keys(request.headers.get("authorization", ""), request.headers.get("x-api-key", ""))
    caller = _caller(service, request, keys)
    return None if caller is None else caller.id


def needs(scope: Scope) -> list[Dependency]:
    """Return the dependencies of a route for callers with a scope; others get a 403."""
    return [Depends(_check(scope))]


def _check(scope: Scope) -> Callable[[CallerOf], Coroutine[Any, Any, None]]:
    async def check(caller: CallerOf) -> None:
        if not caller.holder.may(scope):
            raise HTTPException(403, f"a key with the scope {str(scope)!r} is needed: Authorization: Bearer KEY")

    return check


def may_name(service: Service, caller: Caller, version: str) -> bool:
    """Whether a caller may name a version: v0 is the model without an edit, so that not everybody may."""
    every = caller.holder.may(Scope.PUBLISH) or service.settings.version_choice == EVERYONE
    return every or version in (ACTIVE, service.live.active.version)


def check_version(service: Service, caller: Caller, version: str, field: str) -> None:
    """Raise 403 for a caller who may not name `version`."""
    if not may_name(service, caller, version):
        needed = f"a key with the scope {str(Scope.PUBLISH)!r} is needed to name it"
        raise HTTPException(403, f"{field}: {version!r} is not the active version; {needed}")


def _keys(authorization: str, x_api_key: str) -> list[str]:
    scheme, _, token = authorization.partition(" ")
    return [key for key in (token.strip() if scheme.lower() == "bearer" else "", x_api_key) if key]


def _caller(service: Service, request: Request, keys: Sequence[str]) -> Caller | None:
    """The caller with these keys; None where a key is needed and none is known."""
    if (known := service.keys.find(keys)) is None:
        return None
    key, holder = known
    own = key or (request.client.host if request.client else "")
    return Caller(holder.name or hashlib.sha256(own.encode("utf-8", "replace")).hexdigest()[:16], holder)
