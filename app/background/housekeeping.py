"""Housekeeping thread of a server: trims memory, polls the disk, deletes expired records, logs alerts."""

from __future__ import annotations

import logging
import sqlite3
from itertools import count
from threading import Event

from app.background import heap
from app.background.live_traffic import Traffic
from app.service import Service
from core.errors import NoStorage, SafeCBError, Unavailable

log = logging.getLogger(__name__)

EVERY_S = 10.0
FORGET_EVERY = 60  # turns, beginning with the first


def keep_up(service: Service, ended: Event) -> None:
    """Run the housekeeping of `service` until `ended`: the body of a thread."""
    raised: str | None = None
    for turn in count():
        heap.trim()
        service.storage.poll()
        service.cusum.poll()
        raised = _log_alert(service, raised)
        service.guard.act()
        service.trials.act()
        if turn % FORGET_EVERY == 0:
            _forget(service)
        if ended.wait(EVERY_S):
            return


def _log_alert(service: Service, raised: str | None) -> str | None:
    """Log an alert on live traffic that was raised or cleared; return the version it stands on, as `raised` was."""
    try:
        traffic = service.traffic.report()
    except (NoStorage, sqlite3.Error) as error:
        log.warning("live traffic cannot be read: %s", error)
        return raised
    except Unavailable:  # no version yet
        return raised
    if raised not in (None, traffic.version):
        log.warning("live traffic alert over: %s is no longer active", raised)
        raised = None
    if traffic.alert != (raised is not None):
        state = "raised" if traffic.alert else "over"
        log.warning("live traffic alert %s: %s under %s", state, _why(traffic), traffic.version)
    return traffic.version if traffic.alert else None


def _why(traffic: Traffic) -> str:
    if traffic.bad_numbers:
        return f"{traffic.bad_numbers} refused for NaN or infinity"
    if traffic.cusum.alert or len(traffic.windows) < traffic.patience:
        return f"by CUSUM, {traffic.cusum.unsafe} of {traffic.cusum.images} prompts unsafe"
    return ", ".join(f"{share:.1%}" for share in traffic.windows[-traffic.patience :]) + " unsafe"


def _forget(service: Service) -> None:
    for rows in (service.images, service.flags):
        try:
            rows.forget()
        except (SafeCBError, sqlite3.Error) as error:  # the next turn tries again
            log.warning("expired records cannot be deleted for now: %s", error)
