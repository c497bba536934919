"""Readers of settings' values: text to folders, lists, switches and keys, or BadSetting with what is allowed.

Knows forms of values. Knows nothing of which settings there are.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path

from core.errors import BadSetting

_SWITCH = re.compile(r"on|off")
_KEYS = re.compile(r"[!-+\--~]+(,[!-+\--~]+)*")  # printable ASCII, separated by commas


def matching(values: Mapping[str, str], key: str, pattern: re.Pattern[str], allowed: str) -> str:
    """Return the value of `key` if `pattern` matches all of it."""
    if not pattern.fullmatch(values[key]):
        raise BadSetting(key, values[key], allowed)
    return values[key]


def folder(values: Mapping[str, str], key: str) -> Path:
    """Return a folder, absolute; "~" is a home."""
    if "\0" in values[key] or "://" in values[key]:
        raise BadSetting(key, values[key], "a folder")
    # Absolute, so that it is the same for a process in another folder.
    return Path(os.path.expanduser(values[key])).absolute()


def file(values: Mapping[str, str], key: str) -> Path | None:
    """Return a file, absolute; None where none is set."""
    return folder(values, key) if values[key] else None


def networks(values: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Return the IP addresses and networks of a list."""
    names = tuple(part.strip() for part in values[key].split(",")) if values[key] else ()
    try:
        return tuple(str(ipaddress.ip_network(name)) for name in names)
    except ValueError as error:
        raise BadSetting(key, values[key], f"IP addresses and networks, separated by commas ({error})") from None


def is_on(values: Mapping[str, str], key: str) -> bool:
    """Return whether a switch is on."""
    return matching(values, key, _SWITCH, "on or off") == "on"


def keys(values: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the keys of a list; none where none is set."""
    if not values[name]:
        return ()
    if not _KEYS.fullmatch(values[name]):
        raise BadSetting(name, "<hidden>", "keys of printable ASCII without blanks, separated by commas")
    return tuple(values[name].split(","))
