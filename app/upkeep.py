"""What a server does now and then, asked or not: gives free memory back, forgets what is past its time."""

from __future__ import annotations

import logging
import sqlite3
from itertools import count
from threading import Event

from app import heap
from app.service import Service

log = logging.getLogger(__name__)

EVERY_S = 10.0
FORGET_EVERY = 60  # turns, the first one included


def keep_up(service: Service, ended: Event) -> None:
    """Keep the server in order until `ended`: the work of a thread of its own."""
    for turn in count():
        heap.trim()
        if turn % FORGET_EVERY == 0:
            _forget(service)
        if ended.wait(EVERY_S):
            return


def _forget(service: Service) -> None:
    for rows in (service.images, service.flags):
        try:
            rows.forget()
        except (sqlite3.Error, OSError) as error:  # a full disk, say: the next turn may do better
            log.warning("what is past its time stays for now: %s", error)
