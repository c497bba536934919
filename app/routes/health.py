"""/health and the console at /: the calls that need no key."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from app.access.keys import ServiceOf
from core.errors import SafeCBError

router = APIRouter(tags=["health"])

# Reports open as pages of the console's own, with their style inside.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@router.get("/health/live", summary="Liveness probe")
async def live() -> dict[str, str]:
    """Report that the process responds."""
    return {"status": "live"}


@router.get(
    "/health/ready",
    summary="Readiness probe",
    responses={503: {"description": "Not ready, with the reason", "content": {"application/json": {}}}},
)
def ready(service: ServiceOf, response: Response) -> dict[str, Any]:
    """Report whether images can be drawn: 503 until the model has drawn its first. Redis is not required."""
    queue = service.queue.state.report()
    try:
        engine, (active, content_hash) = service.engine, service.live.following()
        service.live.check_fresh()
        load = engine.scheduler.load()
    except SafeCBError as error:
        response.status_code = 503
        return {"status": "unready", "reason": str(error), **queue}
    return {
        "status": "ready",
        "model": engine.facts.title,
        "codebook": active.version,
        "codebook_hash": content_hash,
        "epoch": active.epoch,
        "refused": service.live.last_error,
        "stale_s": round(service.live.stale_s, 1),
        "bad_numbers": service.traffic.bad_numbers(active.version),
        "storage": service.storage.states,
        "judge": service.settings.judge,
        "images": {"waiting": load.waiting, "drawing": load.drawing},
        **queue,
    }


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def console() -> Response:
    """Return the console page, which loads scripts and styles from this server alone."""
    page = (files("app.console") / "static" / "console.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_POLICY})
