"""Live-traffic monitor: the share of images judged unsafe under the active version, by windows and by a CUSUM.

The log line of its alert is in housekeeping.py. Knows verdicts. Knows nothing of HTTP or of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock

from codebook.trials.cusum import LIMIT, Cusum
from records.image_log import ImageLog, Verdicts

WINDOW = 200  # judged images
RAISED_ABOVE, CLEARED_BELOW = 0.05, 0.025  # share of a window's images that are judged unsafe
PATIENCE = 2  # consecutive windows before an alert is raised or cleared


@dataclass(frozen=True)
class Traffic:
    """Judged images of a version in the image log: the share judged unsafe per full window, oldest first.

    alert: whether one is raised. rest: judged images after the last full window. judged, unjudged: images in the log.
    bad_numbers: calls refused since the start of the server because an image came to NaN or infinity; any such call is
    an alert. cusum: on callers who name no version, by all servers; its alert is one too.
    """

    version: str
    windows: list[float]
    rest: int
    alert: bool
    judged: int
    unjudged: int
    raised_above: float = RAISED_ABOVE
    cleared_below: float = CLEARED_BELOW
    patience: int = PATIENCE
    window: int = WINDOW
    bad_numbers: int = 0
    cusum: Cusum = field(default_factory=Cusum)
    cusum_limit: float = LIMIT


@dataclass(frozen=True)
class AlertState:
    """State of the alert on a version after its first `windows` windows."""

    version: str
    windows: int = 0
    alert: bool = False


def judged(before: AlertState, verdicts: Verdicts) -> tuple[Traffic, AlertState]:
    """Return the report on a version's verdicts, and the state of its alert after them.

    Windows are counted from the version's first judged image, so that expired images shift none of them. An alert is
    raised and cleared by PATIENCE consecutive windows; each window counts once.
    """
    first = -(-verdicts.forgotten // WINDOW)  # the first window whose images are all in the log
    unsafe = verdicts.unsafe[first * WINDOW - verdicts.forgotten :]
    whole = len(unsafe) // WINDOW
    windows = [sum(unsafe[i * WINDOW : (i + 1) * WINDOW]) / WINDOW for i in range(whole)]
    alert = before.alert
    for end in range(max(PATIENCE, before.windows - first + 1), whole + 1):
        last = windows[end - PATIENCE : end]
        if min(last) > RAISED_ABOVE:
            alert = True
        elif max(last) < CLEARED_BELOW:
            alert = False
    rest, in_log = len(unsafe) - whole * WINDOW, (len(verdicts.unsafe), verdicts.unjudged)
    traffic = Traffic(before.version, windows, rest, alert, *in_log)
    return traffic, AlertState(before.version, max(before.windows, first + whole), alert)


class LiveTraffic:
    """Monitor of the active version; thread-safe. A restarted server evaluates the image log again."""

    def __init__(self, images: ImageLog, active: Callable[[], str], cusum: Callable[[], Cusum]) -> None:
        """`active` returns the name of the active version, `cusum` the state of its CUSUM."""
        self._images, self._active, self._cusum = images, active, cusum
        self._state = AlertState("")
        self._bad_numbers = Counter[str]()
        self._lock = Lock()

    def refused(self, version: str) -> None:
        """Count a call that is refused because an image under `version` came to NaN or infinity."""
        with self._lock:
            self._bad_numbers[version] += 1

    def bad_numbers(self, version: str) -> int:
        """Return the number of calls refused so since the start of the server."""
        return self._bad_numbers[version]

    def report(self) -> Traffic:
        """Return the report on the active version; an alert on another is dropped. Raises what `active` does."""
        with self._lock:
            version = self._active()
            if version != self._state.version:
                self._state = AlertState(version)
            traffic, self._state = judged(self._state, self._images.verdicts(version))
            bad, cusum = self._bad_numbers[version], self._cusum()
            alert = traffic.alert or bad > 0 or cusum.alert
            return replace(traffic, bad_numbers=bad, alert=alert, cusum=cusum)
