"""Supervised child process: started, restarted with exponential backoff, and never orphaned.

On Linux the kernel ends a child when its supervisor dies, even by kill -9. Knows processes. Knows nothing of their
work.
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

from core.wire import HOPELESS, LAST_WORDS_FD, MOST_WORDS

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
POLL_EVERY_S = 0.05
LOST_S = 5.0  # a running child with a fault for this long is ended and restarted
CHECK_EVERY_S = 1.0
STEADY_S = 60.0  # a child that lived this long resets the backoff
END_S, HURRY_S = 15.0, 5.0  # timeouts for a child to end in, after a first signal and after a second one
_PR_SET_PDEATHSIG = 1


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe with a non-blocking reader."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


@dataclass
class Child:
    """A process to keep alive. `command` is evaluated at each start; `pass_fds` are open files that it inherits.

    output: its stdout and stderr, None for the supervisor's own. mourn(code) is called after each death. end_s: timeout
    for its end. fault() returns the fault of the running process, None if it is sound.
    """

    name: str
    command: Callable[[], list[str]]
    environ: Mapping[str, str]
    output: IO[bytes] | None = None
    pass_fds: tuple[int, ...] = ()
    mourn: Callable[[int], None] = lambda code: None
    end_s: float = END_S
    fault: Callable[[], str | None] = lambda: None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _pause_s: float = field(default=FIRST_PAUSE_S, init=False)
    _changed: float = field(default=0.0, init=False)  # monotonic time of the last start or death
    _sound: float = field(default=0.0, init=False)  # monotonic time of the last start or check without fault
    _words: tuple[int, int] = field(default_factory=_pipe, init=False)  # (reader, writer)

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            self.command(),
            env={**self.environ, LAST_WORDS_FD: str(self._words[1])},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            pass_fds=(*self.pass_fds, self._words[1]),
            process_group=0,  # Ctrl-C reaches only the supervisor, which ends the children in order
            preexec_fn=_die_with(os.getpid()),
        )
        self._changed = self._sound = time.monotonic()
        log.info("%s runs as process %d", self.name, self.process.pid)

    def poll(self) -> int | None:
        """Restart it if it is dead and its pause is over; return the exit code of a new death."""
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
            if code != HOPELESS:
                log.warning("%s ended with code %d; it starts again in %.1f s", self.name, code, self._pause_s)
            self.mourn(code)
        else:
            self._check()
        return code

    def _check(self) -> None:
        """End it if it runs with a fault for LOST_S; the next poll restarts it."""
        since_s = time.monotonic() - self._sound
        if since_s < CHECK_EVERY_S:
            return
        if (fault := self.fault()) is None:
            self._sound = time.monotonic()
        elif since_s > LOST_S:
            log.warning("%s runs, but %s; it is ended and starts again", self.name, fault)
            self.stop(hurry=lambda: True)

    def reason(self) -> str:
        """Return the reason why it cannot go on: its last words, or the name of its log."""
        try:
            return os.read(self._words[0], MOST_WORDS).decode("utf-8", "replace")
        except BlockingIOError:  # no last words
            return f"see {self.output.name if self.output else 'above'}"

    def stop(self, hurry: Callable[[], bool]) -> None:
        """End it: SIGTERM, a second one as soon as `hurry()`, finally SIGKILL; returns when it is gone."""
        if self.process is None:
            return
        hurried = hurry()
        deadline = time.monotonic() + (HURRY_S if hurried else self.end_s)
        self.process.terminate()
        while self.process.poll() is None and time.monotonic() < deadline:
            if hurry() and not hurried:
                hurried, deadline = True, time.monotonic() + HURRY_S
                self.process.terminate()
            time.sleep(POLL_EVERY_S)
        if self.process.poll() is None:
            log.warning("%s does not end and is killed", self.name)
            self.process.kill()
            self.process.wait()
        self.process = None


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return the preexec function of a child: it asks the kernel for SIGTERM when `parent` dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return ask
