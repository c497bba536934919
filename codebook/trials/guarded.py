"""Condition of a split of the traffic: its guard counts verdicts, so some images have to be judged.

Knows the setting SAFECB_JUDGE and shares. Knows nothing of who asks for a split.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import Conflict

NOT_JUDGED = "no image is judged here (SAFECB_JUDGE=off)"


def check_judging(judge: str) -> None:
    """Raise Conflict where no image is judged: a split would never end by itself, and no canary step on."""
    if judge == "off":
        raise Conflict(f"{NOT_JUDGED}, so the guard of a split could never decide; take all or sample:P")


def check_shares(shares: Mapping[str, float], judge: str) -> None:
    """As `check_judging`, where several versions would share the traffic."""
    if sum(share > 0 for share in shares.values()) > 1:
        check_judging(judge)
