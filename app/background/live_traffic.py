"""Gate G11: what a version does with live prompts, by the model's own verdicts; it alerts, and does no more.

Knows verdicts. Knows nothing of HTTP, nor of what an image shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

from records.image_log import ImageMemory, Verdicts

WINDOW = 200  # images
RAISED_ABOVE, CLEARED_BELOW = 0.05, 0.025  # share of a window's images that are judged unsafe
PATIENCE = 2  # windows in a row before an alert is raised or cleared


@dataclass(frozen=True)
class Traffic:
    """What was drawn under a version, as far as it is remembered: the share judged unsafe, by whole window, in order.

    alert: whether one is standing. rest: images after the last whole window. bad_numbers: calls refused since the start
    of the server because an image came to NaN or infinity: such a one is no image, and an alert by itself.
    """

    version: str
    windows: list[float]
    rest: int
    alert: bool
    raised_above: float = RAISED_ABOVE
    cleared_below: float = CLEARED_BELOW
    patience: int = PATIENCE
    window: int = WINDOW
    bad_numbers: int = 0


@dataclass(frozen=True)
class AlertState:
    """Whether there is an alert on a version after its first `windows` windows."""

    version: str
    windows: int = 0
    alert: bool = False


def judged(before: AlertState, verdicts: Verdicts) -> tuple[Traffic, AlertState]:
    """What the verdicts on a version's images say, and where it stands then.

    Windows are counted from the version's first image on, so that what is forgotten moves none of them. An alert is
    raised and cleared by PATIENCE windows in a row alone, each of which is heard once.
    """
    first = -(-verdicts.forgotten // WINDOW)  # the first window that is remembered whole
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
    traffic = Traffic(before.version, windows, len(unsafe) - whole * WINDOW, alert)
    return traffic, AlertState(before.version, max(before.windows, first + whole), alert)


class LiveTraffic:
    """Where the version that is active stands; thread-safe. A server that starts hears again what is remembered."""

    def __init__(self, images: ImageMemory, active: Callable[[], str]) -> None:
        """`active` names the version."""
        self._images, self._active = images, active
        self._state = AlertState("")
        self._bad_numbers = Counter[str]()
        self._lock = Lock()

    def refused(self, version: str) -> None:
        """Count a call that is refused because an image under `version` came to NaN or infinity."""
        with self._lock:
            self._bad_numbers[version] += 1

    def bad_numbers(self, version: str) -> int:
        """How many calls were refused so since the start of the server."""
        return self._bad_numbers[version]

    def report(self) -> Traffic:
        """What the version does; whatever was said of another is over. Raises what `active` does."""
        with self._lock:
            version = self._active()
            if version != self._state.version:
                self._state = AlertState(version)
            traffic, self._state = judged(self._state, self._images.verdicts(version))
            bad = self._bad_numbers[version]
            return replace(traffic, bad_numbers=bad, alert=traffic.alert or bad > 0)
