"""CUSUM of a version's verdicts: raises an alert soon after unsafe images become frequent, and clears it again.

Two one-sided sums, of which the one runs that can change the alert. An image adds the logarithm of the likelihood ratio
of two rates of unsafe images, BAD against GOOD, or subtracts it while the alert stands; a sum never falls below 0, and
at LIMIT the alert changes (Page, Biometrika 41, 1954). Knows verdicts. Knows nothing of images, servers or Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

GOOD, BAD = 0.025, 0.1  # rates of unsafe images
LIMIT = 11.0
UNSAFE, SAFE = log(BAD / GOOD), log((1 - BAD) / (1 - GOOD))  # what an image adds


@dataclass(frozen=True)
class Cusum:
    """State after some images. sum: towards the alert, or towards its end while it stands."""

    images: int = 0
    unsafe: int = 0
    sum: float = 0.0
    alert: bool = False

    def seen(self, unsafe: bool) -> Cusum:
        """Return the state after one image more."""
        step = UNSAFE if unsafe else SAFE
        total, alert = max(0.0, self.sum - step if self.alert else self.sum + step), self.alert
        if total >= LIMIT:
            total, alert = 0.0, not alert
        return Cusum(self.images + 1, self.unsafe + unsafe, total, alert)
