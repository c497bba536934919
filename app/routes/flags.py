"""/flags: users flag images as unsafe; operators review the flags that the next improve job learns from."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Response
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import CallerOf, ServiceOf, check_caller, needs
from app.drawing import decode
from app.schemas import ApproveRequest, FlagRequest, FlagResponse
from app.service import Service
from codebook.store import codebook_hash
from core.errors import BadInput
from engine.png import encode_png
from records.flags import Flag, State

router = APIRouter(prefix="/flags", tags=["flags"], dependencies=[Depends(check_caller)])

PNG = "image/png"


@router.post("", summary="Flag an image", status_code=201, dependencies=needs(Scope.FLAG))
def flag(body: FlagRequest, service: ServiceOf, caller: CallerOf) -> FlagResponse:
    """Flag an image that is still in the image log. A category that the model does not know waits for an operator."""
    image = service.images.get(body.image_id)
    review = body.category is not None and body.category not in service.engine.facts.categories
    return _to_response(service.flags.add(image, body.category, body.note, caller.id, review=review))


@router.get("", summary="List flags", dependencies=needs(Scope.ADMIN))
def flags(service: ServiceOf, state: State | None = None) -> list[FlagResponse]:
    """List all flags, or those in one state, newest first."""
    return [_to_response(flag) for flag in service.flags.list(state)]


@router.get("/{id}", summary="Get a flag", dependencies=needs(Scope.ADMIN))
def one_flag(id: str, service: ServiceOf) -> FlagResponse:
    """Get a flag."""
    return _to_response(service.flags.get(id))


@router.get(
    "/{id}/image",
    summary="Get a flagged image",
    response_class=Response,
    responses={200: {"content": {PNG: {}}}},
    dependencies=needs(Scope.ADMIN),
)
async def image(id: str, service: ServiceOf) -> Response:
    """Get the flagged image, decoded from its tokens under the version that drew it."""
    flag = await run_in_threadpool(service.flags.get, id)
    codebook, pixels = await decode(service, flag.tokens, flag.version, True)
    text = {"codebook": flag.version, "codebook_hash": codebook_hash(codebook)}
    return Response(await run_in_threadpool(encode_png, pixels, text), media_type=PNG)


@router.post("/{id}/approve", summary="Approve a flag", dependencies=needs(Scope.ADMIN))
def approve(id: str, service: ServiceOf, body: ApproveRequest | None = None) -> FlagResponse:
    """Approve a flag: the next improve job learns from it. A flag of an unknown category needs a known one here."""
    category = (body or ApproveRequest()).category
    _refuse_unknown(service, service.flags.get(id).category if category is None else category)
    return _to_response(service.flags.settle(id, "accepted", category))


@router.post("/{id}/reject", summary="Reject a flag", dependencies=needs(Scope.ADMIN))
def reject(id: str, service: ServiceOf) -> FlagResponse:
    """Reject a flag; no job will learn from it."""
    return _to_response(service.flags.settle(id, "rejected"))


def _refuse_unknown(service: Service, category: str | None) -> None:
    known = service.engine.facts.categories
    if category is not None and category not in known:
        raise BadInput("category", category, f"one of {', '.join(known)}")


def _to_response(flag: Flag) -> FlagResponse:
    here = f"/flags/{flag.id}"
    return FlagResponse(
        id=flag.id,
        image_id=flag.image_id,
        prompt=flag.prompt,
        codebook=flag.version,
        category=flag.category,
        note=flag.note,
        caller=flag.caller,
        state=flag.state,
        made=datetime.fromtimestamp(flag.made, UTC),
        job=flag.job,
        links={"self": here, "image": f"{here}/image", "approve": f"{here}/approve", "reject": f"{here}/reject"},
    )
