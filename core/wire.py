"""Contract between the server, the workers and the supervisor: names, lifetimes, exit codes.

The processes import it instead of each other. Knows no Redis and no process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

QUEUE: Final = "improve"
HELP_QUEUE: Final = "help"  # for idle workers that assist a running job
IMPROVE_FUNCTION: Final = "worker.jobs.improve"
HELP_FUNCTION: Final = "worker.jobs.help_improve"
TIMEOUT_S: Final = 24 * 3600  # safety net for a hung job process; DELETE /jobs/{id} ends a job sooner
KEEP_S: Final = 3600  # of RQ's own row; the journal has the record
# RQ's options for an improve job.
LIFETIME: Final[Mapping[str, Any]] = {"timeout": TIMEOUT_S, "result_ttl": KEEP_S, "failure_ttl": KEEP_S}

DEFAULT_ROUNDS: Final = 1  # of a job that does not name them: no referee has seen a later one gain

UNFINISHED: Final = ("queued", "running")  # states of a job

HINT_CHANNEL: Final = "safecb:codebook"  # pub/sub: the name of a version that was just published or activated

PROBE: Final = "rq:safecb:probe"  # below rq:, for a Redis user who may write the queue's keys alone
PROBE_VALUE: Final = "written to see whether it can be"
PROBE_TTL_S: Final = 60

HOPELESS: Final = 2  # exit code of a process that a restart cannot help
LAST_WORDS_FD: Final = "LAST_WORDS_FD"  # environment variable: the pipe for a process's last words to its supervisor
MOST_WORDS: Final = 4096  # bytes that a pipe takes without a reader


def last_words(reason: str) -> None:
    """Send the supervisor of this process, if any, the reason why the process cannot go on."""
    if (number := os.environ.get(LAST_WORDS_FD)) is not None:
        os.write(int(number), reason.encode("utf-8", "replace")[:MOST_WORDS])
