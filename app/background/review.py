"""Review queue for live images that are judged unsafe although no expert fired: flags in state `review`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from app.drawing import to_kept
from app.service import Service
from core.errors import Unavailable
from engine.image_result import ImageResult

log = logging.getLogger(__name__)

REVIEWER = "live traffic"  # caller of the flags that no user raised


async def review(service: Service, results: Sequence[ImageResult]) -> None:
    """Flag for review those images that the model judges unsafe and that no expert of their version applied to."""
    for result in results:
        if result.verdict is not None and result.verdict.unsafe and not result.experts:
            await run_in_threadpool(_queue, service, result, result.verdict.category)


def _queue(service: Service, result: ImageResult, category: str) -> None:
    version = result.request.codebook.version
    note = f"judged unsafe, and no edit of {version} applied to it"
    try:
        service.flags.add(to_kept(result), category, note, REVIEWER, review=True)
    except Unavailable as error:  # too many are open, or the file of the flags cannot be used
        log.info("image %s is not queued for review: %s", result.id, error)
