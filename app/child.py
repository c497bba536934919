"""One supervised process: started, started again with growing pauses, and never left behind.

On Linux the kernel ends a child when its supervisor dies, kill -9 included. Knows processes; knows nothing of what
they do.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO

log = logging.getLogger(__name__)

HOPELESS = 2  # the exit code by which a child says that starting it again cannot help
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0  # a child that lived this long starts afresh with the first pause
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """A process to keep alive. `command` is asked at each start; `pass_fds` are open files that it inherits.

    output: where it writes, None for the supervisor's own. mourn(code) is called after each death.
    """

    name: str
    command: Callable[[], list[str]]
    environ: Mapping[str, str]
    output: IO[bytes] | None = None
    pass_fds: tuple[int, ...] = ()
    mourn: Callable[[int], None] = lambda code: None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _pause_s: float = field(default=FIRST_PAUSE_S, init=False)
    _changed: float = field(default=0.0, init=False)  # monotonic time of the last start or death

    def start(self) -> None:
        """Start it now."""
        self.process = subprocess.Popen(
            self.command(),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            pass_fds=self.pass_fds,
            process_group=0,  # Ctrl-C reaches the supervisor alone, which ends the children in order
            preexec_fn=_die_with(os.getpid()),
        )
        self._changed = time.monotonic()
        log.info("%s runs as process %d", self.name, self.process.pid)

    def look(self) -> int | None:
        """Start it again if it is dead and its pause is over; return the exit code of a death not seen before."""
        if self.process is None:
            if time.monotonic() - self._changed >= self._pause_s:
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
                self.start()
            return None
        code = self.process.poll()
        if code is not None:
            lived_s = time.monotonic() - self._changed
            self._pause_s = FIRST_PAUSE_S if lived_s > STEADY_S else self._pause_s
            self.process, self._changed = None, time.monotonic()
            log.warning("%s ended with code %d; it starts again in %.1f s", self.name, code, self._pause_s)
            self.mourn(code)
        return code

    def stop(self, patience_s: float) -> None:
        """End it: SIGTERM, then SIGKILL after `patience_s`; returns when it is gone."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %.0f s and is killed", self.name, patience_s)
            self.process.kill()
            self.process.wait()
        self.process = None


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what a new process does before it becomes the child: ask the kernel for SIGTERM when `parent` dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask
