"""Canary guard: ends a split of traffic once the new version draws unsafe images more often than the active one.

Knows verdicts in the image log. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from codebook.live import LiveCodebooks
from core.errors import SafeCBError
from records.image_log import ImageMemory, JudgedImage

log = logging.getLogger(__name__)

GUARD = "canary guard"  # in the audit
BETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # shares of the wealth staked on each difference
LIMIT = 100.0  # e-value of a retreat: wrong in at most 1 of 100 splits of an equally safe version, at whatever look


@dataclass(frozen=True)
class Evidence:
    """What a split has shown of one version. images, unsafe: that version's, and `beside` the active one's.

    e: the largest e-value so far against "draws unsafe images no more often than the active version".
    """

    images: int
    unsafe: int
    beside_images: int
    beside_unsafe: int
    e: float


def evidence(images: Sequence[JudgedImage], active: str, version: str) -> Evidence:
    """Return the evidence on a version from the images of a split, oldest first.

    Runs of images alternate between both versions, as callers are split; a difference d in [-1, 1] is the unsafe share
    of a run of the version less that of the run of the active one before it. Under the hypothesis E d <= 0, each
    product over (1 + bet d) is a supermartingale, and so is the mean over BETS: it exceeds LIMIT with a chance of at
    most 1 / LIMIT, at any time (Ville; betting as in Waudby-Smith and Ramdas, JRSS B 86, 2024). Of a caller's repeated
    prompt the first image counts: the others say the same again.
    """
    once = {(image.version, image.prompt): image for image in reversed(images)}
    single = sorted(once.values(), key=lambda image: image.number)
    own, beside = ([i.unsafe for i in single if i.version == name] for name in (version, active))
    wealth, e = [1.0] * len(BETS), 1.0
    for difference in _differences(single, active, version):
        wealth = [w * (1 + bet * difference) for w, bet in zip(wealth, BETS, strict=True)]
        e = max(e, sum(wealth) / len(wealth))
    return Evidence(len(own), sum(own), len(beside), sum(beside), e)


def gathered(live: LiveCodebooks, images: ImageMemory) -> dict[str, Evidence]:
    """Return the evidence on each version that shares the traffic with the active one, since they share it.

    Raises BadCodebook (audit) for a damaged log, Unavailable where no version is active.
    """
    record = live.active
    others = record.traffic.keys() - {record.version}
    drawn = images.since(live.split_since()) if others else []
    return {version: evidence(drawn, record.version, version) for version in sorted(others)}


def guard(live: LiveCodebooks, images: ImageMemory) -> None:
    """End the split if one of its versions is worse; an error leaves it to the next turn."""
    record = live.active
    try:
        by_version = gathered(live, images)
        if reason := _reason(record.version, by_version):
            live.share({record.version: 1.0}, by=GUARD, expected_epoch=record.epoch, reason=reason)
            log.warning("the split is over: %s", reason)
    except (SafeCBError, sqlite3.Error) as error:
        log.warning("the split cannot be judged: %s", error)


def _reason(active: str, by_version: Mapping[str, Evidence]) -> str:
    """Why the split ends; "" where it goes on. Several versions share the chance of a mistake."""
    for version, e in by_version.items():
        if e.e >= LIMIT * len(by_version):
            return (
                f"{version} draws more unsafe images than {active}: {e.unsafe} of {e.images} beside "
                f"{e.beside_unsafe} of {e.beside_images}, e = {e.e:.0f}"
            )
    return ""


def _differences(images: Iterable[JudgedImage], active: str, version: str) -> Iterator[float]:
    before: float | None = None
    for name, run in groupby((i for i in images if i.version in (active, version)), key=lambda image: image.version):
        unsafe = [image.unsafe for image in run]
        share = sum(unsafe) / len(unsafe)
        if name == active:
            before = share
        elif before is not None:
            yield share - before
            before = None
