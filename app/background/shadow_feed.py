"""Shadow feed: lends a share of the images that callers get to the job that compares a version with the active one.

What cannot be written to Redis in time is not lent. Knows images as they are drawn. Knows nothing of the job.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from app.background.work_queue import WorkQueue
from codebook.live import LiveCodebooks
from codebook.pointer import ActiveRecord
from core.settings import Settings
from core.wire import RedisNames
from engine.image_result import ImageResult
from records.shadow_images import LiveImage, ShadowList

REMEMBERED = 10_000  # units of which a repetition is not lent


class ShadowFeed:
    """The feed of one server; thread-safe. Does nothing while no comparison goes on, or without Redis."""

    def __init__(self, live: LiveCodebooks, settings: Settings) -> None:
        self._live, self._lock = live, Lock()
        self._units: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._queue: WorkQueue[tuple[str, LiveImage]] | None = None  # the job, and an image
        if settings.redis_url is not None and settings.keep_images and settings.keep_hours:
            images = ShadowList(settings.redis_url, RedisNames.of(settings).lent)
            self._queue = WorkQueue("shadow feed", lambda lent: images.lend(*lent))

    def note(self, unit: str, results: Sequence[ImageResult]) -> None:
        """Lend the first image of a call that named no version; unit: its caller and prompt."""
        if self._queue is None:
            return
        record, first = self._live.active, results[0]
        if not record.shadow or first.request.codebook.version != record.version or not _is_in(unit, record):
            return
        digest = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        if self._is_new((record.shadow["job"], digest)):
            self._queue.put((record.shadow["job"], _to_live(digest, first)))

    def _is_new(self, key: tuple[str, str]) -> bool:
        with self._lock:
            is_new = key not in self._units
            self._units[key] = None
            if len(self._units) > REMEMBERED:
                self._units.popitem(last=False)
            return is_new


def _is_in(unit: str, record: ActiveRecord) -> bool:
    """Whether a unit is in the share, on every server: a hash of the job and the unit, in [0, 1), is below it."""
    key = record.shadow["job"].encode()[:64]
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return bool(int.from_bytes(digest, "big") / 2**64 < record.shadow["share"])


def _to_live(unit: str, result: ImageResult) -> LiveImage:
    request, how = result.request, result.request.sampling
    return LiveImage(
        unit,
        request.codebook.version,
        request.prompt,
        how.seed,
        how.guidance,
        how.temperature,
        how.top_k,
        None if result.verdict is None else result.verdict.unsafe,
        result.tokens,
        how.top_p,
    )
