"""/codebooks/shadow, /codebooks/{version}/shadow and /canary: trials of a version beside the active one."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Depends

from app.access.key_ring import Scope
from app.access.keys import CallerOf, ServiceOf, check_caller, needs
from app.codebook_schemas import ActivateRequest, ActivationResponse, MeasureCounts, ShadowRequest, ShadowResponse
from app.improving import check_judge
from app.routes.codebooks import HintOf
from app.routes.jobs import cancel
from app.service import Service
from codebook.trials.guarded import check_judging
from codebook.trials.rule import PROMOTE_AT, RETREAT_AT, Trial
from core.errors import Conflict, NotFound, SafeCBError
from records.journal import SHADOW, JobRecord

router = APIRouter(prefix="/codebooks", tags=["codebooks"], dependencies=[Depends(check_caller)])


@router.get("/shadow", summary="Get the shadow comparison")
def shadow(service: ServiceOf) -> ShadowResponse:
    """Get the comparison that goes on, or the last one: its counts, e-values and decision. 404 if there was none."""
    job = service.live.active.shadow.get("job")
    record = service.journal.newest(SHADOW) if job is None else service.journal.get(job)
    if record is None:
        raise NotFound("no version was compared yet: POST /codebooks/{version}/shadow")
    return _to_response(record)


@router.post(
    "/{version}/shadow", summary="Compare a version in the shadow", status_code=202, dependencies=needs(Scope.PUBLISH)
)
def begin_shadow(
    version: str, service: ServiceOf, caller: CallerOf, hint: HintOf, body: ShadowRequest | None = None
) -> ShadowResponse:
    """Begin a job that draws a share of the live images again under a version, unseen, and judges both.

    409 where the version is active or revoked, another one is on trial or shares the traffic, images are not
    remembered, no Redis is set, or its steps could not be guarded since the server judges no image.
    """
    body = body or ShadowRequest()
    if body.steps:
        check_judging(service.settings.judge)
    _check(service, version)
    request = {"version": version, **body.model_dump(exclude={"expected_epoch"})}
    record = service.journal.create(SHADOW, request)
    try:
        moved = service.live.move(
            lambda store, here: store.begin_shadow(
                version, body.share, record.id, by=caller.name, expected_epoch=body.expected_epoch, followed=here
            )
        )
    except SafeCBError as error:
        service.journal.update(record.id, status="cancelled", error=str(error))
        raise
    service.queue.put(record.id, SHADOW)
    hint(moved)
    return _to_response(record)


@router.delete("/shadow", summary="End the shadow comparison", dependencies=needs(Scope.PUBLISH))
def end_shadow(service: ServiceOf, caller: CallerOf, hint: HintOf) -> ActivationResponse:
    """End the comparison that goes on, and its job; nothing else changes."""
    job = service.store.active().shadow.get("job", "")
    moved = service.live.move(lambda store, here: store.end_shadow(job, by=caller.name, followed=here))
    with suppress(Conflict, NotFound):  # it has ended meanwhile
        cancel(job, service)
    return hint(moved)


@router.post("/{version}/canary", summary="Roll a version out in steps", dependencies=needs(Scope.PUBLISH))
def begin_canary(
    version: str, service: ServiceOf, caller: CallerOf, hint: HintOf, body: ActivateRequest | None = None
) -> ActivationResponse:
    """Let a version draw 1 % of the traffic, then 10 and 50 %, then all, as long as the guard does not end it.

    409 where the server judges no image.
    """
    check_judging(service.settings.judge)
    expected = None if body is None else body.expected_epoch
    return hint(
        service.live.move(
            lambda store, here: store.begin_canary(version, by=caller.name, expected_epoch=expected, followed=here)
        )
    )


def _check(service: Service, version: str) -> None:
    """Raise what a comparison could not begin for, before a job is written to the journal."""
    settings = service.settings
    if settings.redis_url is None:
        raise Conflict("no Redis is set, through which servers lend images: SAFECB_REDIS_URL")
    if not settings.keep_images or not settings.keep_hours:
        raise Conflict("images are not remembered: SAFECB_KEEP_IMAGES=0 or SAFECB_KEEP_HOURS=0")
    active = service.store.active().version
    if service.store.load(active).mode in ("redraw", "refuse"):
        raise Conflict(f"{active}, which is active, refuses prompts: a comparison would not see them")
    service.store.check_trial(version)
    check_judge(settings.second_judge, settings.model)


def _to_response(record: JobRecord) -> ShadowResponse:
    trial = record.result or record.progress.get("trial")
    if trial is None:
        trial = Trial(record.request["margin"], record.request["pairs"]).to_dict()
    return ShadowResponse(
        job=record.id,
        version=record.request["version"],
        status=record.status,
        decision=(record.result or {}).get("decision", ""),
        share=record.request["share"],
        steps=record.request["steps"],
        margin=trial["margin"],
        pairs=trial["pairs"],
        most=trial["most"],
        measures={name: MeasureCounts(**counts) for name, counts in trial["measures"].items()},
        curve=trial.get("curve", {}),
        retreat_at=RETREAT_AT,
        promote_at=PROMOTE_AT,
        links={"self": "/codebooks/shadow", "job": f"/jobs/{record.id}"},
    )
