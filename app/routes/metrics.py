"""GET /metrics: what Prometheus scrapes."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.access.keys import ServiceOf, check_caller

router = APIRouter(tags=["metrics"], dependencies=[Depends(check_caller)])


@router.get(
    "/metrics",
    summary="Get metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(service: ServiceOf) -> Response:
    """Get all metrics of this server, in Prometheus' text format."""
    return Response(generate_latest(service.counts.registry), media_type=CONTENT_TYPE_LATEST)
