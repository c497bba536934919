"""Wall-clock timestamps of records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def utc_now(ahead: float = 0.0) -> str:
    """Return the time in UTC, `ahead` seconds from now; ISO 8601 with microseconds and a Z, which sorts by time."""
    now = datetime.now(UTC) + timedelta(seconds=ahead)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")
