"""Syntax check of a Redis URL, so that a broken one is refused before anything starts.

    redis[s]://[user[:password]@]host[:port][/db][?option=value&...]    unix://[user[:password]@]/folder/socket[?...]

Options are a closed list: the client would accept others as texts and fail later. Knows URLs. Knows no Redis client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from core.errors import BadSetting

_SCHEME = re.compile(r"(rediss?|unix)://(?=\S)")
_DB = r"[0-9]{1,4}"
_SECONDS = r"(?!0+(\.0*)?$)[0-9]{1,5}(\.[0-9]{1,3})?"
_FLAG = r"(?i:true|false|yes|no|1|0)"
_OPTIONS = {
    "db": _DB,
    "username": r".+",
    "password": r".+",
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _FLAG,
    "health_check_interval": r"[0-9]{1,5}",
    "retry_on_timeout": _FLAG,
    "protocol": r"[23]",
}
_TLS_OPTIONS = {
    "ssl_cert_reqs": r"none|optional|required",
    "ssl_check_hostname": _FLAG,
    "ssl_ca_certs": r".+",
    "ssl_ca_path": r".+",
    "ssl_certfile": r".+",
    "ssl_keyfile": r".+",
}
_LONGEST_SOCKET_PATH = 107  # bytes; no system takes more
_ENCODE = "an address; percent-encode / # ? [ ] and blanks in a user name or password: / is %2F, # is %23, ? is %3F"


def check_redis_url(name: str, url: str) -> str:
    """Return `url`, the value of the setting `name`, if a client can connect with it.

    Raises BadSetting with nothing of the URL but its scheme: a broken URL may have its password anywhere.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise BadSetting(name, "<hidden>", "redis://, rediss:// or unix:// and an address")
    if (wrong := _wrong(url)) is not None:
        # An @ behind the first / ? or # (or a blank): the user name or password was cut there.
        broken = re.search(r"[/?#\s[].*@", url[scheme.end() :], re.DOTALL)
        raise BadSetting(name, f"{scheme[0]}***", _ENCODE if broken else wrong)
    return url


def _wrong(url: str) -> str | None:
    """Return the rule that `url` breaks, None if it is right."""
    if re.search(r"[\s\0-\x1f\x7f]", url):
        return "an address without blanks (%20 stands for one)"
    if "#" in url:
        return "an address without # (%23 stands for one)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a host and a port from 1 to 65535, an IPv6 address in [ ]"
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not _is_socket_path(unquote(parts.path)):
            return f"the whole path of a socket after unix://, {_LONGEST_SOCKET_PATH} bytes at most"
    elif port == 0 or not _is_host(unquote(parts.hostname or "")):
        return "a host and a port from 1 to 65535"
    elif not re.fullmatch(rf"/?|/{_DB}", parts.path):
        return "the number of a database after the host, as in redis://host:6379/0"
    return _wrong_option(parts)


def _is_host(host: str) -> bool:
    try:
        return not re.search(r"[\s\0-\x1f\x7f]", host) and bool(host.encode("idna") or not host)
    except UnicodeError:
        return False


def _is_socket_path(path: str) -> bool:
    return len(path) > 1 and "\0" not in path and len(path.encode()) <= _LONGEST_SOCKET_PATH


def _wrong_option(parts: SplitResult) -> str | None:
    options: Mapping[str, str] = _OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else {})
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or not set(names) <= options.keys():
        return f"options, each once, of {', '.join(options)}"
    wrong = next((name for name, value in pairs if not re.fullmatch(options[name], value)), None)
    return None if wrong is None else f"a value that the option {wrong} can have"
