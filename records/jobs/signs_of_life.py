"""Signs of life of attempts on other machines: an object that changes while the attempt lives.

The living attempt overwrites it every BEAT_S. Who watches compares what it sees with what it saw, on its own monotonic
clock: no clocks of two machines are compared. An attempt whose sign has not changed for SILENT_S is declared dead in
the bucket, so that all agree; should it live on, its next write is refused by its fencing token.

Knows objects and seconds. Knows nothing of what an attempt does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from core.bucket.bucket import Bucket
from core.errors import NoBucket
from core.json_records import to_json

log = logging.getLogger(__name__)

BEAT_S = 10.0
SILENT_S = 60.0


class SignsOfLife:
    """The signs of one bucket's attempts. clock: seconds, monotonic."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket, self._clock = bucket, clock
        self._seen: dict[tuple[str, int], tuple[bytes | None, float]] = {}  # the sign, and since when it is the same

    @contextmanager
    def given(self, id: str, attempt: int) -> Iterator[None]:
        """Give signs of an attempt until the block ends."""
        ended = Event()
        thread = Thread(target=self._beat, args=(id, attempt, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def shown(self, id: str, attempt: int) -> bool:
        """Whether an attempt shows life, or has not been watched for long enough. Raises NoBucket."""
        try:
            if self._bucket.read(_dead(id, attempt)) is not None:
                return False
            sign = self._bucket.read(_alive(id, attempt))
        except NoBucket:
            self._seen.clear()  # while nothing can be seen, silence says nothing
            raise
        before = self._seen.get((id, attempt))
        if before is None or before[0] != sign:
            self._seen[id, attempt] = sign, self._clock()
            return True
        if self._clock() - before[1] < SILENT_S:
            return True
        self.declare_dead(id, attempt)
        log.warning("attempt %d of job %s has shown no life for %.0f s", attempt, id, SILENT_S)
        return False

    def declare_dead(self, id: str, attempt: int) -> None:
        """Say to all that an attempt is dead. Raises NoBucket."""
        self._bucket.create(_dead(id, attempt), b"{}")

    def _beat(self, id: str, attempt: int, ended: Event) -> None:
        beats = 0
        while True:
            beats += 1
            try:
                self._bucket.write(_alive(id, attempt), to_json("sign", {"attempt": attempt, "beats": beats}))
            except NoBucket as error:
                log.warning("job %s shows no sign of life: %s", id, error)
            if ended.wait(BEAT_S):
                return


def _alive(id: str, attempt: int) -> str:
    return f"job/{id}/alive-{attempt}"


def _dead(id: str, attempt: int) -> str:
    return f"job/{id}/dead-{attempt}"
