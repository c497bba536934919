"""GET /traffic: verdicts on live images of the active version."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends

from app.access.keys import ServiceOf, check_caller
from app.schemas import TrafficResponse

router = APIRouter(tags=["traffic"], dependencies=[Depends(check_caller)])


@router.get("/traffic", summary="Get live traffic")
def live(service: ServiceOf) -> TrafficResponse:
    """Get the share of the active version's images that are judged unsafe, per window, and the alert on it."""
    return TrafficResponse(**asdict(service.traffic.report()), judge=service.settings.judge)
