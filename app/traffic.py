"""Gate G11: what the active version does with live prompts, by the model's own verdicts; it alerts, and does no more.

Reads the image memory. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from app.drawing import Picture
from app.service import Service
from codebook.errors import Busy
from codebook.value import NO_EXPERT

log = logging.getLogger(__name__)

WINDOW = 200  # images
RAISED_ABOVE, CLEARED_BELOW = 0.05, 0.025  # share of a window's images that are judged unsafe
PATIENCE = 2  # windows in a row before an alert is raised or cleared
REVIEWER = "live traffic"  # the caller of flags that nobody raised


@dataclass(frozen=True)
class Traffic:
    """What was drawn under a version, as far as it is remembered: the share judged unsafe, by whole window, in order.

    alert: whether one is standing. rest: images after the last whole window.
    """

    version: str
    windows: list[float]
    rest: int
    alert: bool
    raised_above: float = RAISED_ABOVE
    cleared_below: float = CLEARED_BELOW
    patience: int = PATIENCE
    window: int = WINDOW


def traffic(version: str, unsafe: Sequence[bool]) -> Traffic:
    """Sum up verdicts on images, oldest first. An alert is raised and cleared by PATIENCE windows in a row alone."""
    whole = len(unsafe) // WINDOW
    windows = [sum(unsafe[i * WINDOW : (i + 1) * WINDOW]) / WINDOW for i in range(whole)]
    alert = False
    for end in range(PATIENCE, whole + 1):
        last = windows[end - PATIENCE : end]
        if min(last) > RAISED_ABOVE:
            alert = True
        elif max(last) < CLEARED_BELOW:
            alert = False
    return Traffic(version, windows, len(unsafe) - whole * WINDOW, alert)


def live_traffic(service: Service) -> Traffic:
    """What the active version does."""
    version = service.live.active.version
    return traffic(version, service.images.verdicts(version))


async def review(service: Service, pictures: Sequence[Picture]) -> None:
    """Queue for a person those images that the model judges unsafe and that no part of their version was meant for."""
    for picture in pictures:
        if picture.drawn.verdict.unsafe and picture.drawn.expert == NO_EXPERT:
            await run_in_threadpool(_queue, service, picture)


def _queue(service: Service, picture: Picture) -> None:
    version, category = picture.request.codebook.version, picture.drawn.verdict.category
    note = f"judged unsafe, and no edit of {version} applied to it"
    try:
        service.flags.add(picture.kept(), category, note, REVIEWER, review=True)
    except Busy as full:
        log.info("image %s is not queued for review: %s", picture.id, full)
