"""/codebooks: which versions there are, which is active, their reports, and moving the active pointer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from app.comparing import compared
from app.console.report_page import page
from app.drawing import chosen_seed, draw
from app.http.disconnect import while_connected
from app.http.keys import OPERATORS, Caller, ServiceOf, check_caller
from app.http.negotiation import preferred
from app.schemas import ActivateRequest, ActiveCodebook, CompareRequest, CompareResponse, RollbackRequest
from app.service import Service
from codebook.store import ActiveRecord, Manifest, Moved

router = APIRouter(prefix="/codebooks", tags=["codebooks"], dependencies=[Depends(check_caller)])

JSON, HTML = "application/json", "text/html"
OPERATOR = "operator"  # in the audit log: a person, by way of this API


@router.get("")
def codebooks(service: ServiceOf) -> dict[str, Any]:
    """List all versions, oldest first."""
    active = _active(service)
    return {
        "active": active.model_dump(),
        "versions": [_to_response(m, active.version) for m in service.store.versions()],
    }


@router.get("/active")
def active(service: ServiceOf) -> ActiveCodebook:
    """Tell which version this server draws with where a request names none."""
    return _active(service)


@router.get("/{version}")
def codebook(version: str, service: ServiceOf) -> dict[str, Any]:
    """Tell the facts about one version."""
    return _to_response(service.store.manifest(version), service.live.active.version)


@router.get("/{version}/report", responses={200: {"content": {JSON: {}, HTML: {}}}})
def report(version: str, service: ServiceOf, accept: Annotated[str, Header()] = "") -> Response:
    """Give the report of the round that made a version: as JSON, or as a page for people."""
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


@router.get("/{version}/report/{name}", response_class=Response, responses={200: {"content": {"image/png": {}}}})
def report_image(version: str, name: str, service: ServiceOf) -> Response:
    """Give one picture of a version's report."""
    return Response(service.store.image(version, name), media_type="image/png")


@router.post("/rollback", dependencies=OPERATORS)
def rollback(service: ServiceOf, body: RollbackRequest | None = None) -> dict[str, ActiveRecord]:
    """Go back to the version that was active before, or to `to`."""
    body = body or RollbackRequest()
    return _moved(service.live.rollback(by=OPERATOR, to=body.to, expected_epoch=body.expected_epoch))


@router.post("/{version}/activate", dependencies=OPERATORS)
def activate(version: str, service: ServiceOf, body: ActivateRequest | None = None) -> dict[str, ActiveRecord]:
    """Make a version active, after every check; 409 where the pointer has moved on from `expected_epoch`."""
    expected = None if body is None else body.expected_epoch
    return _moved(service.live.activate(version, by=OPERATOR, expected_epoch=expected))


@router.post("/compare")
async def compare(body: CompareRequest, request: Request, service: ServiceOf, caller: Caller) -> CompareResponse:
    """Draw one prompt under two versions with the same seed, and tell where the pixels differ."""
    facts = service.engine.facts
    sampling = facts.sampling(chosen_seed(body.seed))
    versions = [(version, f"versions.{index}") for index, version in enumerate(body.versions)]
    left, right = await while_connected(request, draw(service, caller, body.prompt, versions, sampling))
    return await run_in_threadpool(compared, facts.model_id, left, right)


def _active(service: Service) -> ActiveCodebook:
    record, content_hash = service.live.following()
    return ActiveCodebook(**asdict(record), codebook_hash=content_hash)


def _to_response(manifest: Manifest, active: str) -> dict[str, Any]:
    return {**asdict(manifest), "state": "active" if manifest.version == active else "published"}


def _moved(moved: Moved) -> dict[str, ActiveRecord]:
    return {"old": moved[0], "new": moved[1]}
