"""Live images outside what their version knows as harmful: they wait for a person, as flags in state `review`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from app.drawing import to_kept
from app.service import Service
from codebook.value import NO_EXPERT
from core.errors import Unavailable
from engine.image_result import ImageResult

log = logging.getLogger(__name__)

REVIEWER = "live traffic"  # the caller of flags that nobody raised


async def review(service: Service, results: Sequence[ImageResult]) -> None:
    """Queue for a person those images that the model judges unsafe and that no part of their version was meant for."""
    for result in results:
        if result.verdict.unsafe and result.expert == NO_EXPERT:
            await run_in_threadpool(_queue, service, result)


def _queue(service: Service, result: ImageResult) -> None:
    version, category = result.request.codebook.version, result.verdict.category
    note = f"judged unsafe, and no edit of {version} applied to it"
    try:
        service.flags.add(to_kept(result), category, note, REVIEWER, review=True)
    except Unavailable as error:  # too many are open, or the file of the flags cannot be used
        log.info("image %s is not queued for review: %s", result.id, error)
