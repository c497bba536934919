"""The worker process: reads the settings, waits for Redis, works until it is told to stop.

It exits when Redis goes away for good; whoever supervises it (`safecb serve`, a container) starts it again.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from codebook.errors import BadSetting
from codebook.journal import Journal
from codebook.settings import Settings
from worker.allowed import AllowedJob
from worker.station import open_station

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
STEP_BACK = 19  # by how much a job's priority is lower than a server's on the same cores, in steps of nice


def main() -> int:
    """Work with the settings of the environment: 0 after a signal, 1 when Redis was lost, 2 for a bad setting."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    os.nice(STEP_BACK)
    try:
        settings = Settings.from_environ(os.environ)
        return work(settings)
    except BadSetting as error:
        log.error("%s", error)
        return 2


def work(settings: Settings, job_class: type[AllowedJob] = AllowedJob) -> int:
    """Take jobs until a signal (returns 0) or until Redis is lost (returns 1).

    Raises BadSetting when no Redis is named: the embedded one is started, and named, by `safecb serve`.
    """
    if settings.redis_url is None:
        raise BadSetting("SAFECB_REDIS_URL", None, "the address of the queue's Redis")
    station = open_station(reach(settings.redis_url), Journal(settings.home / "jobs"), job_class)
    try:
        station.work(logging_level="INFO")
    except (RedisConnectionError, RedisTimeoutError) as error:
        log.error("Redis was lost: %s", error)
    return 0 if station.stopping else 1


def reach(url: str) -> Redis[bytes]:
    """A connection to the Redis at `url` that has answered; waits for as long as that takes."""
    connection, wait_s = Redis.from_url(url), 0.1
    while True:
        try:
            connection.ping()
            return connection
        except (RedisConnectionError, RedisTimeoutError) as error:
            log.warning("waiting for Redis: %s", error)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
