"""CUSUM watch: verdicts on what the active version draws once it carries all traffic, counted by all servers together.

Raises an alert beside the windows of live_traffic.py and moves nothing. Callers who name a version do not count, and of
a caller's same prompt the first judged image counts. Knows verdicts. Knows nothing of HTTP or of how they are counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from app.background.verdict_tally import OwnTally, SharedTally, Tally
from app.background.work_queue import WorkQueue
from codebook.live import LiveCodebooks
from codebook.trials.cusum import Cusum
from core.errors import Unavailable
from core.settings import Settings
from core.wire import RedisNames
from engine.image_result import ImageResult, first_judged

Counted = tuple[str, str, bool]  # key of the version, unit, whether the image is unsafe


class CusumWatch:
    """The watch of one server; thread-safe. With Redis its state is that of all servers, at most one poll old."""

    def __init__(self, live: LiveCodebooks, settings: Settings) -> None:
        self._live = live
        self._tally: Tally = OwnTally()
        if settings.redis_url is not None:
            self._tally = SharedTally(settings.redis_url, RedisNames.of(settings).verdicts)
        self._queue = WorkQueue("cusum watch", self._count)
        self._last = "", Cusum()  # of one version, as last read; replaced whole

    def note(self, unit: str, results: Sequence[ImageResult]) -> None:
        """Count the first judged image of a call that named no version; unit: its caller and prompt."""
        record, judged = self._live.active, first_judged(results)
        if judged is None or record.traffic or judged[0].request.codebook.version != record.version:
            return
        digest = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._queue.put((self._key(), digest, judged[1].unsafe))

    def state(self) -> Cusum:
        """The state of the active version, without reading Redis. Raises as LiveCodebooks.active."""
        key, state = self._last
        return state if key == self._key() else Cusum()

    def poll(self) -> None:
        """Read what all servers have counted."""
        try:
            key = self._key()
        except Unavailable:  # no version yet
            return
        if (state := self._tally.read(key)) is not None:
            self._last = key, state

    def close(self) -> None:
        """Close the connections."""
        self._tally.close()

    def _count(self, counted: Counted) -> None:
        if (state := self._tally.count(*counted)) is not None:
            self._last = counted[0], state

    def _key(self) -> str:
        record, content_hash = self._live.following()
        return f"{record.version}:{content_hash}"
