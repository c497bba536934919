"""Writability of the server's folders: for /health/ready, and as a log line when it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from codebook.store import CodebookStore
from core.errors import NoStorage
from core.storage import probe

log = logging.getLogger(__name__)

OK = "ok"


class Storage:
    """The state of each folder, by the setting that names it, as of the last `poll`: "ok", "full", "read-only", ..."""

    def __init__(self, home: Path, store: CodebookStore) -> None:
        self._home = home
        self._checks: Mapping[str, Callable[[], None]] = {
            "SAFECB_HOME": self._check_home,
            "SAFECB_STORE": store.check_writable,
        }
        self.states = dict.fromkeys(self._checks, OK)

    def poll(self) -> None:
        """Update `states`."""
        for setting, check in self._checks.items():
            before = self.states[setting]
            try:
                check()
            except NoStorage as error:
                self.states[setting] = error.state
                if before != error.state:
                    log.warning("%s cannot be written: %s", setting, error.about(error.path))
            else:
                self.states[setting] = OK
                if before != OK:
                    log.warning("%s can be written again", setting)

    def _check_home(self) -> None:
        for name in ("", "jobs", "images.db", "flags.db"):
            probe(self._home / name)
