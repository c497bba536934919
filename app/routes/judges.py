"""/judges: names for the second judge of improve jobs.

Knows names. Knows nothing of how a judge is loaded.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.access.keys import ServiceOf, check_caller
from app.improving import second_judges
from app.schemas import JudgesResponse
from safety.judges.grammar import SHAPES

router = APIRouter(prefix="/judges", tags=["policies"], dependencies=[Depends(check_caller)])


@router.get("", summary="List second judges")
def judges(service: ServiceOf) -> JudgesResponse:
    """List the second judges that this server could use as they are, and the shapes of all other names."""
    settings = service.settings
    return JudgesResponse(usual=settings.second_judge, names=second_judges(settings.model), shapes=list(SHAPES))
