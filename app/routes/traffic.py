"""GET /traffic: what the active version does with live prompts."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.background.live_traffic import Traffic
from app.http.keys import ServiceOf, check_caller

router = APIRouter(tags=["traffic"], dependencies=[Depends(check_caller)])


@router.get("/traffic")
def live(service: ServiceOf) -> Traffic:
    """Tell how often the active version's images are judged unsafe, and whether that is an alert."""
    return service.traffic.report()
