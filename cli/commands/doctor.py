"""`safecb doctor`: check a set-up part by part, without a server, and name the fix of each fault.

Changes nothing. Knows the parts of a set-up, each imported by its check: other commands start without them. Loads no
model.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
from collections.abc import Callable

import typer

from app.access.key_ring import KeyRing
from core.errors import BadInput, BadSetting, SafeCBError
from core.settings import Settings
from core.storage import probe
from safety.judges.grammar import check_setting

LEAST_ROOM = 2 * 2**30  # bytes: an improve job keeps about a gigabyte of results

Check = Callable[[Settings], str]


def doctor() -> None:
    """Check this machine's set-up and name the fix of each fault: exit code 1 with a fault."""
    try:
        settings = Settings.from_environ(os.environ)
    except BadSetting as error:
        print(f"FAULT  settings: {error}")
        raise typer.Exit(1) from None
    sound = [line(name, check, settings) for name, check in CHECKS.items()]
    if not all(sound):
        raise typer.Exit(1)


def line(name: str, check: Check, settings: Settings) -> bool:
    """Print one check; return whether it held."""
    try:
        print(f"ok     {name}: {check(settings)}")
    except SafeCBError as error:
        print(f"FAULT  {name}: {error}")
        return False
    return True


def home(settings: Settings) -> str:
    """SAFECB_HOME can be written and has room."""
    place = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    if not place.is_dir():
        raise BadSetting("SAFECB_HOME", str(settings.home), f"a folder; {place} is a file")
    probe(place)
    room = shutil.disk_usage(place).free
    if room < LEAST_ROOM:
        raise BadSetting(
            "SAFECB_HOME", str(settings.home), f"a disk with {LEAST_ROOM >> 30} GiB of room; {room >> 20} MiB are left"
        )
    return f"{settings.home}, {room >> 30} GiB of room"


def model(settings: Settings) -> str:
    """The model's files are there, of a family that is served, and its weights fit the memory that is free."""
    from engine.registry import check_model

    return check_model(settings.model, settings.device, settings.dtype)


def store(settings: Settings) -> str:
    """Every version can be loaded; of several simultaneous creations in a bucket one wins."""
    from codebook.store import CodebookStore

    own = CodebookStore.of(settings)
    if settings.bucket is not None:
        own.place.prepare()
    if own.place.identity() is None:
        return "none yet; the first start makes it"
    active, versions = own.active().version, own.versions()
    for manifest in versions:
        own.load(manifest.version)
    unseen = "; v0 is compared with the model at the start" if settings.public_keys is not None else ""
    return f"{len(versions)} versions, all sound; {active} is active{unseen}"


def redis(settings: Settings) -> str:
    """Redis takes jobs."""
    if settings.redis_url is None:
        return "embedded"
    from redis import Redis, RedisError

    from app.queue_state import fault

    try:
        with Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()
            return f"version {client.info('server')['redis_version']}"
    except RedisError as error:
        raise BadInput("SAFECB_REDIS_URL", "<hidden>", f"a Redis that takes jobs; {fault(error)[1]}") from None


def judge(settings: Settings) -> str:
    """The second judge's name can be read."""
    check_setting(settings.second_judge)
    return settings.second_judge


def judged(settings: Settings) -> str:
    """The images that are judged as they are drawn, and what rests on their verdicts."""
    from app.background.live_traffic import PATIENCE, WINDOW

    share, least = settings.judge_share, (PATIENCE + 1) * WINDOW  # full windows, however they lie in the log
    if not share:
        return "off: no verdicts in answers, no alert on live traffic, no canary or split"
    if settings.keep_images * share < least:
        return f"{settings.judge}; windows of live traffic need SAFECB_KEEP_IMAGES={math.ceil(least / share)} or more"
    return settings.judge


def keys(settings: Settings) -> str:
    """The keys can be read, and an open server stays on its machine."""
    from app.server import check_exposure

    ring = KeyRing(settings)
    check_exposure(settings)
    return "everybody may draw" if ring.is_open else "needed"


def address(settings: Settings) -> str:
    """The address is free, or a server listens there already."""
    place = f"{settings.host}:{settings.port}"
    try:
        socket.create_server((settings.host, settings.port), family=_family(settings.host)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise BadSetting(
                "SAFECB_HOST, SAFECB_PORT", place, f"an address of this machine ({error.strerror})"
            ) from None
        return f"{place}, where something listens already"
    return f"{place}, free"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


CHECKS: dict[str, Check] = {
    "home": home,
    "model": model,
    "store": store,
    "Redis": redis,
    "second judge": judge,
    "images judged": judged,
    "keys": keys,
    "address": address,
}
