"""The worker process: reads the settings, waits for a usable Redis, works until a signal.

If Redis goes away, or refuses writes, it waits again without limit: one log line has the reason, one reports the end.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from codebook.identity import check_format
from codebook.signature import Signatures
from core import logs, wire
from core.bucket.bucket import Bucket
from core.errors import BadCodebook, BadSetting, NoStorage
from core.settings import Settings
from records.journal import Journal
from safety.judges.grammar import check_setting
from worker.allowed_job import AllowedJob
from worker.niceness import niceness
from worker.rq_worker import open_worker

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
ONCE = Retry(NoBackoff(), 0)  # Patience does the waiting


def main() -> int:
    """Work with the settings of the environment: 0 after a signal, 1 if RQ gave up, 2 for a bad setting or store."""
    logs.configure("text")
    try:
        settings = Settings.from_environ(os.environ)
        os.nice(niceness(settings.job_share))
        logs.configure(settings.log)
        return work(settings)
    except (BadSetting, BadCodebook) as error:
        log.error("%s", error)
        return wire.HOPELESS


def work(settings: Settings, job_class: type[AllowedJob] = AllowedJob) -> int:
    """Run jobs until a signal (returns 0) or until RQ gives up (returns 1; its log has the reason).

    Raises BadSetting if no Redis is set (`safecb serve` starts the embedded one and sets its address), and for a second
    judge or a key that is none; BadCodebook (format) for a store of a later release, whose jobs are not for this one.
    """
    os.environ.setdefault(*wire.SPINNING)  # for the processes of jobs, which load OpenMP
    check_setting(settings.second_judge)
    Signatures.of(settings)  # a fault in the keys would otherwise show in the first job
    _check_store(settings)
    if settings.redis_url is None:
        raise BadSetting("SAFECB_REDIS_URL", None, "the address of the queue's Redis")
    journal, patience, names = Journal.of(settings), Patience(), wire.RedisNames.of(settings)
    _die_of_signals()
    while True:
        patience.settled = False
        try:
            with Redis.from_url(settings.redis_url, retry=ONCE) as redis:
                redis.set(names.probe, wire.PROBE_VALUE, ex=wire.PROBE_TTL_S)
            with Redis.from_url(settings.redis_url, retry=ONCE) as redis:  # RQ sets its own timeout
                worker = open_worker(redis, journal, patience.settle, job_class, names)
                worker.work(logging_level="INFO")
                return 0 if worker.stopping else 1
        except RedisError as error:
            _die_of_signals()
            patience.wait(error)


def _check_store(settings: Settings) -> None:
    """Raise BadCodebook (format) for a store of a later release; one that cannot be read is left to its jobs."""
    name = "model.json"
    with suppress(NoStorage, OSError, ValueError):
        if settings.bucket is not None:
            data = Bucket(settings.bucket).read(name)
        else:
            data = (settings.store / name).read_bytes()
        if data is not None:
            check_format(f"{settings.bucket or settings.store}/{name}", data)


def _die_of_signals() -> None:
    """Let a signal end the process immediately: RQ's handlers need a Redis, and there is nothing to clean up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Patience:
    """Exponential backoff between attempts at Redis; logs the reason once, and the end."""

    def __init__(self) -> None:
        self.settled = False
        self._said, self._wait_s = "", FIRST_WAIT_S

    def settle(self) -> None:
        """Reset: Redis did all that a worker needs."""
        if self._said:
            log.warning("Redis can be used again")
        self.settled, self._said, self._wait_s = True, "", FIRST_WAIT_S

    def wait(self, error: RedisError) -> None:
        """Wait after `error`. If Redis was usable before, the next attempt shows the reason."""
        if not self.settled and str(error) != self._said:
            self._said = str(error)
            log.warning("waiting for a Redis that can be used: %s", error)
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
