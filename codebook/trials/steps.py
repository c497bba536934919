"""Steps of a canary: the share of the traffic that it draws, and the images after which the next step is taken.

What the numbers let through is in docs/how-to/roll-out-a-version.md. Knows numbers only.
"""

from __future__ import annotations

# Share, and images of the canary at one server in that step. At 1 % a version that is plainly broken shows within a
# hundred images, and few callers see it; at 10 % the guard finds 25 % unsafe images beside 5 % within some 150 of the
# canary, at 50 % it finds 10 % beside 5 % within about a thousand.
STEPS = ((0.01, 100), (0.1, 300), (0.5, 1000))
FIRST_SHARE = STEPS[0][0]


def images_until(share: float) -> int:
    """Return the images of a canary since it began, at one server, after which it leaves the step of this share."""
    return sum(images for earlier, images in STEPS if earlier <= share)


def share_after(share: float) -> float:
    """Return the share of the next step; 1 after the last."""
    return next((later for later, _ in STEPS if later > share), 1.0)
