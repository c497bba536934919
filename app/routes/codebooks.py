"""/codebooks: versions, their reports, the active alias, activation, rollback and comparison."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Query, Request, Response
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
    Shares,
    SplitEvidence,
    TrafficShares,
)
from app.comparing import compared
from app.console.report_page import page
from app.drawing import chosen_seed, draw
from app.http.disconnect import while_connected
from app.http.negotiation import preferred
from app.http.request_id import id_of
from app.service import Service
from codebook.store import Manifest, Moved
from codebook.trials.bets import LIMIT
from codebook.trials.guarded import check_shares
from codebook.trials.steps import images_until
from core.hints import send_hint

router = APIRouter(prefix="/codebooks", tags=["codebooks"], dependencies=[Depends(check_caller)])

JSON, HTML = "application/json", "text/html"
LAST_EPOCH = 2**53  # one that no activation reaches
ExpectedEpoch = Annotated[int | None, Query(ge=0, le=LAST_EPOCH, description="Refuse with 409 unless at this epoch.")]


class Hint:
    """Dependency of moves: hints the other servers once the answer is sent, and gives the answer."""

    def __init__(self, service: ServiceOf, later: BackgroundTasks) -> None:
        self._settings, self._later = service.settings, later

    def __call__(self, moved: Moved) -> ActivationResponse:
        """The answer to a move."""
        self._later.add_task(send_hint, self._settings, moved[1].version)
        old, new = (Activation(**asdict(record)) for record in moved)
        return ActivationResponse(old=old, new=new)


HintOf = Annotated[Hint, Depends()]


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
        "versions": [_to_response(m, active) for m in service.store.versions(limit, before)],
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


@router.get("/traffic", summary="Get the shares of traffic")
def traffic(service: ServiceOf) -> TrafficShares:
    """Get the versions that draw for callers who name none, and what this server drew under each since they share."""
    record = service.live.active
    return TrafficShares(
        active=record.version,
        epoch=record.epoch,
        since=record.split,
        shares=record.traffic or {record.version: 1.0},
        evidence={version: SplitEvidence(**e.to_dict()) for version, e in service.guard.evidence().items()},
        limit=LIMIT,
        canary=record.canary,
        next_step_at=images_until(record.traffic[record.canary]) if record.canary else 0,
        judge=service.settings.judge,
    )


@router.put("/traffic", summary="Share the traffic", dependencies=needs(Scope.PUBLISH))
def share_traffic(
    service: ServiceOf, caller: CallerOf, hint: HintOf, body: Shares, expected_epoch: ExpectedEpoch = None
) -> ActivationResponse:
    """Let versions share the traffic, the active one among them; a caller gets the same one for the same prompt.

    409 where the server judges no image.
    """
    check_shares(body.root, service.settings.judge)
    return hint(service.live.share(body.root, by=caller.name, expected_epoch=expected_epoch))


@router.delete("/traffic", summary="End a share", dependencies=needs(Scope.PUBLISH))
def end_traffic(
    service: ServiceOf, caller: CallerOf, hint: HintOf, expected_epoch: ExpectedEpoch = None
) -> ActivationResponse:
    """Let the active version draw for all callers again who name none."""
    everything = {service.store.active().version: 1.0}
    return hint(service.live.share(everything, by=caller.name, expected_epoch=expected_epoch))


@router.get("/{version}", summary="Get a version")
def codebook(version: str, service: ServiceOf) -> dict[str, Any]:
    """Get the manifest of a version."""
    return _to_response(service.store.manifest(version), _active(service))


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
def rollback(
    service: ServiceOf, caller: CallerOf, hint: HintOf, body: RollbackRequest | None = None
) -> ActivationResponse:
    """Activate the version that was active before, or `to`, or end a share; 409 unless at `expected_epoch`."""
    body = body or RollbackRequest()
    return hint(service.live.rollback(by=caller.name, to=body.to, expected_epoch=body.expected_epoch))


@router.post("/{version}/activate", summary="Activate a version", dependencies=needs(Scope.PUBLISH))
def activate(
    version: str, service: ServiceOf, caller: CallerOf, hint: HintOf, body: ActivateRequest | None = None
) -> ActivationResponse:
    """Activate a version after every check; 409 where it fails one or the epoch is not `expected_epoch`."""
    expected = None if body is None else body.expected_epoch
    return hint(service.live.activate(version, by=caller.name, expected_epoch=expected))


@router.post("/{version}/revoke", summary="Revoke a version", dependencies=needs(Scope.PUBLISH))
def revoke(version: str, service: ServiceOf, caller: CallerOf, hint: HintOf) -> ActivationResponse:
    """Draw nothing under a version any more, whoever names it; if it is active, the one before it is activated."""
    return hint(service.live.revoke(version, by=caller.name))


@router.post("/{version}/restore", summary="Restore a version", dependencies=needs(Scope.PUBLISH))
def restore(version: str, service: ServiceOf, caller: CallerOf, hint: HintOf) -> ActivationResponse:
    """Allow a revoked version again; it is not activated."""
    return hint(service.live.restore(version, by=caller.name))


@router.post("/{version}/derive", status_code=201, summary="Derive a version", dependencies=needs(Scope.PUBLISH))
def derive(version: str, body: DeriveRequest, service: ServiceOf) -> dict[str, Any]:
    """Publish the same tables in another mode, as a child of this version; it is not activated."""
    return _to_response(service.store.derive(version, body.mode), _active(service))


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


def _to_response(manifest: Manifest, active: Activation) -> dict[str, Any]:
    known = {active.version: "active", **dict.fromkeys(active.revoked, "revoked")}
    state = known.get(manifest.version, "canary" if manifest.version in active.traffic else "published")
    return {**asdict(manifest), "mode": manifest.mode, "self_judged": manifest.self_judged, "state": state}
