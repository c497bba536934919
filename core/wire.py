"""Contract between the server, the workers and the supervisor: names, lifetimes, exit codes.

The processes import it instead of each other. Knows settings. Knows no Redis and no process.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from core.atomic import read_or_create
from core.settings import Settings

QUEUE: Final = "improve"
HELP_QUEUE: Final = "help"  # for idle workers that assist a running job
IMPROVE_FUNCTION: Final = "worker.jobs.improve"
SHADOW_FUNCTION: Final = "worker.jobs.shadow"
HELP_FUNCTION: Final = "worker.jobs.help_improve"
TIMEOUT_S: Final = 24 * 3600  # safety net for a hung job process; DELETE /jobs/{id} ends a job sooner
KEEP_S: Final = 3600  # of RQ's own row; the journal has the record
# RQ's options for an improve job.
ATTEMPTS: Final = "attempts"  # in RQ's row: how many attempts had begun when the job was enqueued
LIFETIME: Final[Mapping[str, Any]] = {"timeout": TIMEOUT_S, "result_ttl": KEEP_S, "failure_ttl": KEEP_S}

DEFAULT_ROUNDS: Final = 1  # of a job that does not name them: a later one takes half as long again

IMPROVE: Final = "improve"  # kinds of jobs
SHADOW: Final = "shadow"
FUNCTIONS: Final[Mapping[str, str]] = {IMPROVE: IMPROVE_FUNCTION, SHADOW: SHADOW_FUNCTION}

NICE: Final = 10  # by how much the priority of a thread that computes in a server is lower

UNFINISHED: Final = ("queued", "running")  # states of a job

HINT_CHANNEL: Final = "safecb:codebook"  # pub/sub: the name of a version that was just published or activated

PROBE: Final = "rq:safecb:probe"  # below rq:, for a Redis user who may write the queue's keys alone
RATES: Final = "rq:safecb:rates"  # likewise
IMAGES: Final = "rq:safecb:image"
ANSWERS: Final = "rq:safecb:answers"
VERDICTS: Final = "rq:safecb:verdicts"  # the CUSUM of each version
LENT: Final = "rq:safecb:shadow"  # a list of live images for each shadow job
PROBE_VALUE: Final = "written to see whether it can be"
PROBE_TTL_S: Final = 60

# An environment variable: how often a thread of OpenMP looks for work before it sleeps. Without a limit, threads that
# wait take the cores from those of other processes. OpenMP reads it when it is loaded. docs/log.md has the figures.
SPINNING: Final = ("GOMP_SPINCOUNT", "3000")

HOPELESS: Final = 2  # exit code of a process that a restart cannot help
LAST_WORDS_FD: Final = "LAST_WORDS_FD"  # environment variable: the pipe for a process's last words to its supervisor
MOST_WORDS: Final = 4096  # bytes that a pipe takes without a reader


@dataclass(frozen=True)
class RedisNames:
    """The names in Redis of one deployment. They carry the tag of its bucket or home, so that one Redis serves several.

    help_queue: of the home: an assistant works on the files of a job that runs there.
    """

    queue: str = QUEUE
    help_queue: str = HELP_QUEUE
    hints: str = HINT_CHANNEL
    probe: str = PROBE
    rates: str = RATES
    images: str = IMAGES
    answers: str = ANSWERS
    lent: str = LENT
    verdicts: str = VERDICTS

    @classmethod
    def of(cls, settings: Settings) -> RedisNames:
        """Return the names of the settings; makes the tag of a home that has none. Raises NoRoom and NoAccess then."""
        if settings.redis_url is None:
            return PLAIN_NAMES
        if (tag := settings.bucket_tag) is None:
            tag = help_tag = _home_tag(settings.home)
        else:
            machine = hashlib.sha256(f"{socket.gethostname()}:{settings.home}".encode()).hexdigest()[:8]
            help_tag = f"{tag}-{machine}"
        shared = (f"{name}-{tag}" for name in (HINT_CHANNEL, PROBE, RATES, IMAGES, ANSWERS, LENT, VERDICTS))
        return cls(f"{QUEUE}-{tag}", f"{HELP_QUEUE}-{help_tag}", *shared)


PLAIN_NAMES: Final = RedisNames()  # of no deployment: a queue by itself


def _home_tag(home: Path) -> str:
    """Eight hex digits of what a home got at its first use: it may be mounted at any path, on several machines."""
    mark = read_or_create(home / "redis.id", lambda: secrets.token_hex().encode())
    return hashlib.sha256(mark).hexdigest()[:8]


def last_words(reason: str) -> None:
    """Send the supervisor of this process, if any, the reason why the process cannot go on."""
    if (number := os.environ.get(LAST_WORDS_FD)) is not None:
        os.write(int(number), reason.encode("utf-8", "replace")[:MOST_WORDS])
