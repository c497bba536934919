"""POST /improve and /jobs: start an improve job, read its state, stream its events, cancel it.

The journal is the source of truth; a job that could not be enqueued waits there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import ServiceOf, check_caller, needs
from app.improving import check_improve
from app.plan_schemas import PlanResponse
from app.planning import plan_improve
from app.schemas import ImproveBody, JobResponse
from app.service import Service
from core.errors import Conflict
from records.journal import IMPROVE, JobRecord

router = APIRouter(tags=["jobs"], dependencies=[Depends(check_caller)])

POLL_EVERY_S = 0.5  # of the journal, by an event stream
RECONNECT_MS = 2000  # after which a browser reconnects when the server has ended its stream
MOST_EVENTS = 2**53  # an id that no event reaches


LastEvent = Annotated[int, Header(ge=0, le=MOST_EVENTS, description="Number of the last event received.")]


@router.post(
    "/improve",
    summary="Start an improve job",
    status_code=202,
    response_model=JobResponse,
    responses={200: {"model": PlanResponse, "description": "The plan of a dry run"}},
    dependencies=needs(Scope.IMPROVE),
)
async def improve(body: ImproveBody, request: Request, service: ServiceOf, response: Response) -> Any:  # noqa: ANN401  (see responses)
    """Start an improve job; 409 names the one that is still queued or running. A dry run begins none."""
    if body.dry_run:
        plan = await run_in_threadpool(plan_improve, body, service)
        return Response(plan.model_dump_json(), media_type="application/json")
    await run_in_threadpool(check_improve, body, service)
    record = await run_in_threadpool(_begin, service, body.model_dump(exclude={"dry_run"}))
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/jobs/{record.id}"
    return _to_response(record, service)


@router.get("/jobs", summary="List jobs")
def jobs(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most jobs of the answer.")] = 100,
    before: Annotated[str, Query(max_length=24, description="Id of a job: list older ones alone.")] = "",
) -> list[JobResponse]:
    """List jobs, newest first; for the next page ask for those before the last one."""
    return [_to_response(record, service) for record in service.journal.list(limit, before)]


@router.get("/jobs/{id}", summary="Get a job")
def job(id: str, service: ServiceOf) -> JobResponse:
    """Get a job."""
    return _to_response(service.journal.get(id), service)


def _known_job(id: str, service: ServiceOf, last_event_id: LastEvent = 0) -> str:
    """Return the id of an existing job: a stream that has begun can return no 404, and no 204 for one that has ended.

    A browser that gets a 204 connects no more.
    """
    record = service.journal.get(id)
    if record.ended and last_event_id > _last_event(service, id):
        raise HTTPException(HTTPStatus.NO_CONTENT)
    return record.id


def _last_event(service: Service, id: str) -> int:
    """The number of a job's last event; `end` has the next one."""
    events = service.journal.events(id, 0)
    return events[-1]["id"] if events else 0


@router.get(
    "/jobs/{id}/events",
    summary="Stream job events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job has ended, and the caller has every event"}},
)
async def events(
    id: Annotated[str, Depends(_known_job)],
    service: ServiceOf,
    last_event_id: LastEvent = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of a job from its beginning: `progress`, `round` and finally `end` with the job.

    Whoever has them all gets a 204. If the server stops first, the stream ends with `retry` and without `end`:
    reconnect with `Last-Event-ID`.
    """
    after = last_event_id
    while True:
        # The record is read before the events: all that was written before the job ended is then among them.
        record = await run_in_threadpool(service.journal.get, id)
        for event in await run_in_threadpool(service.journal.events, id, after):
            after = event["id"]
            yield ServerSentEvent(data=event, event=event["event"], id=str(after))
        if record.ended:
            yield ServerSentEvent(data=_to_response(record, service), event="end", id=str(after + 1))
            return
        if service.stopping:
            yield ServerSentEvent(retry=RECONNECT_MS)
            return
        await asyncio.sleep(POLL_EVERY_S)


@router.delete("/jobs/{id}", summary="Cancel a job", status_code=202, dependencies=needs(Scope.IMPROVE))
def cancel(id: str, service: ServiceOf) -> JobResponse:
    """Cancel a job: immediately if it is queued, within seconds if it is running. 409 if it has ended."""
    record = service.journal.get(id)
    if record.status == "queued":
        with suppress(Conflict):  # a worker has just begun it
            ended = service.journal.update(id, attempt=record.attempt, status="cancelled", cancel_requested=True)
            return _to_response(ended, service)
    record = service.journal.update(id, cancel_requested=True)
    service.queue.stop(id)
    return _to_response(record, service)


def _begin(service: Service, request: dict[str, Any]) -> JobRecord:
    record = service.journal.create(IMPROVE, request)
    service.queue.put(record.id)
    return record


def _to_response(record: JobRecord, service: Service) -> JobResponse:
    here = f"/jobs/{record.id}"
    links = {"self": here, "events": f"{here}/events"}
    if (version := (record.result or {}).get("version")) is not None:
        links["report"] = f"/codebooks/{version}/report"
    progress, plan = record.progress, record.plan
    if record.ended is not None and plan is not None:
        plan = {**plan, "seconds_left": None, "eta": None}
    if record.ended is None:
        progress = {**progress, "message": service.queue.state.message(record.status, progress.get("message", ""))}
    return JobResponse(**{**asdict(record), "progress": progress, "plan": plan}, links=links)
