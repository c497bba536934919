"""The contract between the server, its workers and their supervisor: names, lifetimes, exit codes.

Each process imports it in place of the others. Knows no Redis and no process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

QUEUE: Final = "improve"
HELP_QUEUE: Final = "help"  # for idle workers that assist a running job
IMPROVE_FUNCTION: Final = "worker.jobs.improve"
HELP_FUNCTION: Final = "worker.jobs.help_improve"
TIMEOUT_S: Final = 24 * 3600  # a safety net for a hung job process; DELETE /jobs/{id} ends a job sooner
KEEP_S: Final = 3600  # of RQ's own row; the record that counts is in the journal
# How RQ keeps a queued improve job.
LIFETIME: Final[Mapping[str, Any]] = {"timeout": TIMEOUT_S, "result_ttl": KEEP_S, "failure_ttl": KEEP_S}

UNFINISHED: Final = ("queued", "running")  # states of a job

HINT_CHANNEL: Final = "safecb:codebook"  # pub/sub: the name of a version that has just become active

PROBE: Final = "rq:safecb:probe"  # below rq:, for a Redis user who may write the queue's keys alone
PROBE_VALUE: Final = "written to see whether it can be"
PROBE_TTL_S: Final = 60

HOPELESS: Final = 2  # the exit code by which a process says that starting it again cannot help
LAST_WORDS_FD: Final = "LAST_WORDS_FD"  # in the environment: the pipe for a process's last words to its supervisor
MOST_WORDS: Final = 4096  # bytes: what a pipe takes without a reader


def last_words(reason: str) -> None:
    """Send the supervisor of this process, if there is one, the reason why it cannot go on."""
    if (number := os.environ.get(LAST_WORDS_FD)) is not None:
        os.write(int(number), reason.encode("utf-8", "replace")[:MOST_WORDS])
