"""Keys of a server: whose a key is and what it may do, from a file that is read again when it changes.

Knows the file's format, TOML, and the keys of the environment. Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from core.errors import BadSetting
from core.settings import Settings

log = logging.getLogger(__name__)

SETTING = "SAFECB_KEYS"
OPERATOR = "operator"  # in the audit log, whoever has no name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RATE = re.compile(r"[1-9][0-9]{0,6}/(second|minute|hour|day)")
_FIELDS, _LIMITS = {"name", "sha256", "scopes"}, {"rate", "queue"}
MOST_QUEUE = 100_000


class Scope(StrEnum):
    """What a key may be for; every key may read versions, jobs and metrics."""

    GENERATE = "generate"
    FLAG = "flag"
    IMPROVE = "improve"
    PUBLISH = "publish"
    ADMIN = "admin"


@dataclass(frozen=True)
class Holder:
    """Whose a key is. name: "" for a key of the environment, and for whoever needs none.

    rate: of images, if any. queue: images that may wait on a server at once, if limited beyond a fair share.
    """

    name: str
    scopes: frozenset[Scope]
    rate: str | None = None
    queue: int | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the holder may do what needs `scope`; ADMIN may do everything."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


EVERYTHING = Holder("", frozenset(Scope))
USER = Holder("", frozenset((Scope.GENERATE, Scope.FLAG)))


class KeyRing:
    """The keys of one server. Raises BadSetting for a file with a fault; one that gets a fault later is not taken."""

    def __init__(self, settings: Settings) -> None:
        if settings.keys is not None and (settings.api_keys or settings.operator_keys):
            allowed = "no file of keys beside SAFECB_API_KEYS or SAFECB_OPERATOR_KEYS"
            raise BadSetting(SETTING, str(settings.keys), allowed)
        self._path, self._stamp = settings.keys, _stamp(settings.keys)
        self._holders = _of_environment(settings) if self._path is None else _read(self._path)
        needs_none = USER if settings.operator_keys else EVERYTHING
        self._anonymous = None if settings.api_keys or self._path is not None else needs_none

    @property
    def is_open(self) -> bool:
        """Whether callers without a key may draw."""
        return self._anonymous is not None

    def find(self, keys: Sequence[str]) -> tuple[str, Holder] | None:
        """The first known one of these keys and its holder; without one, "" and what everybody may do, if anything."""
        self._refresh()
        for key in keys:
            given = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
            # Every key is compared, in constant time: the delay of the response reveals nothing about the keys.
            if found := [holder for known, holder in self._holders if hmac.compare_digest(given, known)]:
                return key, found[0]
        return None if self._anonymous is None else ("", self._anonymous)

    def _refresh(self) -> None:
        """Read the file again if it has changed; a file with a fault leaves the keys as they are."""
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._holders = _read(self._path)
            log.info("%s is read again: %d keys", self._path, len(self._holders))
        except BadSetting as error:
            log.error("the keys stay as they were: %s", error)


def _of_environment(settings: Settings) -> list[tuple[str, Holder]]:
    users = USER if settings.operator_keys else EVERYTHING
    pairs = [(key, EVERYTHING) for key in settings.operator_keys] + [(key, users) for key in settings.api_keys]
    return [(hashlib.sha256(key.encode()).hexdigest(), holder) for key, holder in pairs]


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    """What changes with the file; None if there is none."""
    try:
        status = None if path is None else os.stat(path)
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)


def _read(path: Path) -> list[tuple[str, Holder]]:
    """The sha256 and the holder of each key of a file. Raises BadSetting, naming the entry and its fault."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(SETTING, str(path), f"a readable TOML file ({error})") from None
    entries = content.get("key")
    if set(content) != {"key"} or not isinstance(entries, list) or not entries:
        raise BadSetting(SETTING, str(path), "a file of [[key]] tables and nothing else")
    holders = [_entry(f"{SETTING}: key {number}", entry) for number, entry in enumerate(entries, 1)]
    names = [holder.name for _, holder in holders]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise BadSetting(SETTING, ", ".join(sorted(repeated)), "each name once")
    return holders


def check_name(field: str, name: object) -> None:
    """Raise BadSetting, naming `field`, for a name that no key may have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadSetting(field, name, "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit")


def _entry(place: str, entry: Any) -> tuple[str, Holder]:  # noqa: ANN401  # a value of TOML
    if not isinstance(entry, dict) or set(entry) - _LIMITS != _FIELDS:
        allowed = f"the fields {sorted(_FIELDS)}, and {sorted(_LIMITS)} if there are such"
        raise BadSetting(place, sorted(entry) if isinstance(entry, dict) else entry, allowed)
    name, sha256, scopes = entry["name"], entry["sha256"], entry["scopes"]
    check_name(f"{place}, name", name)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BadSetting(f"{place}, sha256", "<hidden>", "64 hexadecimal digits, as `safecb key` prints them")
    if not isinstance(scopes, list) or not scopes or not all(scope in list(Scope) for scope in scopes):
        raise BadSetting(f"{place}, scopes", scopes, f"some of {', '.join(Scope)}")
    rate = entry.get("rate")
    if rate is not None and not (isinstance(rate, str) and _RATE.fullmatch(rate)):
        raise BadSetting(f"{place}, rate", rate, 'images in a time, such as "60/minute" (second, minute, hour, day)')
    queue = entry.get("queue")
    if queue is not None and (type(queue) is not int or not 1 <= queue <= MOST_QUEUE):
        raise BadSetting(f"{place}, queue", queue, f"images that may wait, a whole number from 1 to {MOST_QUEUE}")
    return sha256, Holder(name, frozenset(map(Scope, scopes)), rate, queue)
