"""/codebooks: versions, their reports, the active alias, activation, rollback and comparison."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import CallerOf, ServiceOf, check_caller, check_version, needs
from app.codebook_schemas import (
    ActivateRequest,
    Activation,
    ActivationResponse,
    ActiveCodebook,
    CompareRequest,
    CompareResponse,
    DeriveRequest,
    RollbackRequest,
)
from app.comparing import compared
from app.console.report_page import page
from app.drawing import chosen_seed, draw
from app.http.disconnect import while_connected
from app.http.negotiation import preferred
from app.http.request_id import id_of
from app.service import Service
from codebook.store import Manifest, Moved

router = APIRouter(prefix="/codebooks", tags=["codebooks"], dependencies=[Depends(check_caller)])

JSON, HTML = "application/json", "text/html"
LAST_EPOCH = 2**53  # one that no activation reaches


@router.get("", summary="List versions")
def codebooks(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most versions of the answer: the newest.")] = 100,
    before: Annotated[str | None, Query(max_length=24, description="A version: list older ones alone.")] = None,
) -> dict[str, Any]:
    """List codebook versions, oldest first, and the active one; for the page before ask for those before the first."""
    active = _active(service)
    return {
        "active": active.model_dump(),
        "versions": [_to_response(m, active.version) for m in service.store.versions(limit, before)],
    }


@router.get("/audit", summary="List activations", dependencies=needs(Scope.PUBLISH))
def audit(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most activations of the answer.")] = 100,
    before: Annotated[int, Query(ge=0, le=LAST_EPOCH, description="An epoch: list older ones alone.")] = LAST_EPOCH,
) -> list[Activation]:
    """List activations, newest first: what became active, when, and by whose key or job."""
    moves = (move for move in reversed(service.store.audit()) if move["epoch"] < before)
    return [Activation(**move) for move in islice(moves, limit)]


@router.get("/active", summary="Get the active version")
def active(service: ServiceOf) -> ActiveCodebook:
    """Get the version that this server uses where a request names none."""
    return _active(service)


@router.get("/{version}", summary="Get a version")
def codebook(version: str, service: ServiceOf) -> dict[str, Any]:
    """Get the manifest of a version."""
    return _to_response(service.store.manifest(version), service.live.active.version)


@router.get("/{version}/report", summary="Get a report", responses={200: {"content": {JSON: {}, HTML: {}}}})
def report(version: str, service: ServiceOf, accept: Annotated[str, Header()] = "") -> Response:
    """Get the report of the round that produced a version: as JSON, or as an HTML page."""
    manifest, content = service.store.manifest(version), service.store.report(version)
    images = {name: f"/codebooks/{version}/report/{name}" for name in service.store.images(version)}
    headers = {"Vary": "Accept"}
    if preferred(accept, (JSON, HTML)) == HTML:
        pictures = {name: service.store.image(version, name) for name in images}
        return HTMLResponse(page(manifest, content, pictures), headers=headers)
    body = {
        "version": version,
        "figures": manifest.figures,
        "gates": manifest.gates,
        "report": content,
        "images": images,
    }
    return JSONResponse(body, headers=headers)


@router.get(
    "/{version}/report/{name}",
    summary="Get a report image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def report_image(version: str, name: str, service: ServiceOf) -> Response:
    """Get a PNG of a version's report."""
    return Response(service.store.image(version, name), media_type="image/png")


@router.post("/rollback", summary="Roll back", dependencies=needs(Scope.PUBLISH))
def rollback(service: ServiceOf, caller: CallerOf, body: RollbackRequest | None = None) -> ActivationResponse:
    """Activate the version that was active before, or `to`; 409 where the epoch is not `expected_epoch`."""
    body = body or RollbackRequest()
    return _moved(service.live.rollback(by=caller.name, to=body.to, expected_epoch=body.expected_epoch))


@router.post("/{version}/activate", summary="Activate a version", dependencies=needs(Scope.PUBLISH))
def activate(
    version: str, service: ServiceOf, caller: CallerOf, body: ActivateRequest | None = None
) -> ActivationResponse:
    """Activate a version after every check; 409 where it fails one or the epoch is not `expected_epoch`."""
    expected = None if body is None else body.expected_epoch
    return _moved(service.live.activate(version, by=caller.name, expected_epoch=expected))


@router.post("/{version}/derive", status_code=201, summary="Derive a version", dependencies=needs(Scope.PUBLISH))
def derive(version: str, body: DeriveRequest, service: ServiceOf) -> dict[str, Any]:
    """Publish the same tables in another mode, as a child of this version; it is not activated."""
    return _to_response(service.store.derive(version, body.mode), service.live.active.version)


@router.post("/compare", summary="Compare two versions", dependencies=needs(Scope.GENERATE))
async def compare(body: CompareRequest, request: Request, service: ServiceOf, caller: CallerOf) -> CompareResponse:
    """Draw one prompt under two versions with the same seed, and return their pixel difference."""
    versions = [(version, f"versions.{index}") for index, version in enumerate(body.versions)]
    for version, field in versions:
        check_version(service, caller, version, field)
    facts = service.engine.facts
    await service.rates.take(caller.holder, len(versions), "versions")
    sampling = facts.sampling(chosen_seed(body.seed))
    left, right = await while_connected(request, draw(service, caller, body.prompt, versions, sampling))
    return await run_in_threadpool(compared, id_of(request), facts.title, left, right)


def _active(service: Service) -> ActiveCodebook:
    record, content_hash = service.live.following()
    return ActiveCodebook(**asdict(record), codebook_hash=content_hash)


def _to_response(manifest: Manifest, active: str) -> dict[str, Any]:
    state = "active" if manifest.version == active else "published"
    return {**asdict(manifest), "mode": manifest.mode, "self_judged": manifest.self_judged, "state": state}


def _moved(moved: Moved) -> ActivationResponse:
    old, new = (Activation(**asdict(record)) for record in moved)
    return ActivationResponse(old=old, new=new)
