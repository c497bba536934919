"""Settings of a process: read once from the environment, validated, and passed in.

Knows names and allowed values. Opens no file. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import BadSetting
from core.values.reading import file, folder, is_on, keys, matching, networks
from core.values.redis_url import check_redis_url

EVERYONE = "everyone"
SHARES = (0.12, 0.9)  # of the cores, for a job: what 19 and 0 steps of nice give
_UNSET = ""  # never a value: an empty one is refused
_DEFAULTS = {
    "SAFECB_HOME": "./var",
    "SAFECB_MODEL": "embedded",
    "SAFECB_HOST": "127.0.0.1",
    "SAFECB_PORT": "8000",
    "SAFECB_REDIS_URL": _UNSET,  # an embedded Redis
    "SAFECB_STORE": _UNSET,  # the folder `store` in SAFECB_HOME
    "SAFECB_DEVICE": "auto",
    "SAFECB_DTYPE": "auto",
    "SAFECB_CORES": "auto",
    "SAFECB_JOB_SHARE": "0.25",
    "SAFECB_LOOKAHEAD": "8",
    "SAFECB_JUDGE": "all",
    "SAFECB_SECOND_JUDGE": "beside",
    "SAFECB_KEYS": _UNSET,  # no file of keys
    "SAFECB_SIGNING_KEY": _UNSET,  # new versions are not signed
    "SAFECB_PUBLIC_KEYS": _UNSET,  # signatures are not checked
    "SAFECB_OPEN": "off",
    "SAFECB_API_KEYS": _UNSET,  # no authentication
    "SAFECB_OPERATOR_KEYS": _UNSET,  # every caller is an operator
    "SAFECB_VERSION_CHOICE": "operators",
    "SAFECB_STALE_LIMIT": _UNSET,  # a server that cannot follow the store goes on
    "SAFECB_KEEP_IMAGES": "2000",
    "SAFECB_KEEP_HOURS": "24",
    "SAFECB_DRAIN_S": "30",
    "SAFECB_LOG": "text",
    "SAFECB_TRUSTED_PROXIES": _UNSET,  # nobody's X-Forwarded-For is believed
    "SAFECB_ROOT_PATH": _UNSET,  # the root of its host
    "SAFECB_SERVER": _UNSET,  # the server of the same settings
    "SAFECB_SERVER_KEY": _UNSET,
    "SAFECB_OPENAI_ALIASES": "on",
    "SAFECB_OPENAI_STRICT": "off",
}
_MODEL = re.compile(r"\S(.*\S)?")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")
_DTYPE = re.compile(r"auto|float32|bfloat16|float16")
_JUDGE = re.compile(r"\S+")
_CORES = re.compile(r"auto|[1-9][0-9]{0,2}")
_SHARE = re.compile(r"0\.[0-9]{1,2}")
_LOOKAHEAD = re.compile(r"[1-9]|1[0-6]")
_JUDGED = re.compile(r"all|off|sample:0\.[0-9]{0,3}[1-9][0-9]{0,3}")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*")
_CHOICE = re.compile(r"operators|everyone")
_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
# Of a service: its host, its ports by name, and each port's address by number.
_LINK = re.compile(r"SAFECB_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_LOG = re.compile(r"text|json")
_WHOLE = re.compile(r"[0-9]{1,7}")
_SECONDS = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True)
class Settings:
    """Settings of the operator. Build them with `from_environ`; secrets stay out of the repr.

    home: folder of all run-time state, absolute.
    model: "embedded", a model folder or a hub name, with or without "@revision".
    host, port: where the server listens; port 0 picks a free one.
    redis_url: redis://, rediss:// or unix://; None runs an embedded Redis.
    store: folder of the codebook versions, absolute; with a bucket, of this machine's copies of them.
    bucket: "s3://NAME/PREFIX" of the bucket that holds the versions and the jobs of several machines; None: the folder.
    device: "auto", "cpu", "cuda" or "cuda:N".
    dtype: "auto", "float32", "bfloat16" or "float16".
    cores: CPU cores that draw and postprocess images; None is all cores of the process.
    job_share: share of the cores, 0.12 to 0.9, that a job is sure of beside a server that draws without pause.
    lookahead: tokens of an image that a step on a CPU samples at most while few images are drawn; 1: no guesses.
    judge: which images are judged as they are drawn: "all", "sample:0.1" for a share of them, "off".
    keys: file of named keys with scopes, absolute; None if there is none.
    signing_key: PEM file of the private Ed25519 key that signs new versions, absolute; None if there is none.
    public_keys: PEM file of the public keys of which one must have signed a version, absolute; None: no check.
    open: whether a server without keys may listen beyond this machine.
    api_keys: keys of the callers; empty disables authentication.
    operator_keys: keys for improve jobs, activation and review of flags; empty makes every caller an operator.
    version_choice: who may name a version other than the active one: "operators" or EVERYONE.
    stale_limit: seconds without following the store after which a server draws nothing; None: it goes on.
    keep_images, keep_hours: size and age limit of the image log, from which images can be flagged; 0 images: no log.
    drain_s: seconds in which a server that shuts down finishes the accepted requests.
    log: form of the log, "text" or "json".
    trusted_proxies: addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
    root_path: prefix of all paths behind a proxy, such as "/pictures"; "" for none.
    server, server_key: URL and key of the server that the command line calls; None for that of the same settings.
    openai_aliases: whether /v1 takes OpenAI's model names for the served model.
    openai_strict: whether /v1 refuses sizes, qualities and styles that the model cannot vary.
    """

    home: Path
    model: str
    host: str
    port: int
    redis_url: str | None = field(repr=False)
    store: Path
    bucket: str | None
    device: str
    dtype: str
    cores: int | None
    job_share: float
    lookahead: int
    judge: str
    second_judge: str
    keys: Path | None
    signing_key: Path | None
    public_keys: Path | None
    open: bool
    api_keys: tuple[str, ...] = field(repr=False)
    operator_keys: tuple[str, ...] = field(repr=False)
    version_choice: str
    stale_limit: int | None
    keep_images: int
    keep_hours: int
    drain_s: int
    log: str
    trusted_proxies: tuple[str, ...]
    root_path: str
    server: str | None
    server_key: str | None = field(repr=False)
    openai_aliases: bool
    openai_strict: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read every SAFECB_ variable of `environ`; a variable that is not set has its default.

        Raises BadSetting, naming the variable, its value (secrets masked) and what is allowed, for an unknown SAFECB_
        variable, an empty value, or a value that is not allowed.
        """
        values = _DEFAULTS | _present(environ)
        home = folder(values, "SAFECB_HOME")
        redis_url = values["SAFECB_REDIS_URL"] and check_redis_url("SAFECB_REDIS_URL", values["SAFECB_REDIS_URL"])
        return cls(
            home=home,
            model=_model(values),
            host=_host(values),
            port=_port(values),
            redis_url=redis_url or None,
            store=_store(values, home),
            bucket=_bucket(values),
            device=matching(values, "SAFECB_DEVICE", _DEVICE, "auto, cpu, cuda or cuda:N"),
            dtype=matching(values, "SAFECB_DTYPE", _DTYPE, "auto, float32, bfloat16 or float16"),
            cores=_cores(values),
            lookahead=int(matching(values, "SAFECB_LOOKAHEAD", _LOOKAHEAD, "a whole number from 1 to 16")),
            judge=matching(values, "SAFECB_JUDGE", _JUDGED, "all, off, or sample:P with P above 0 and below 1"),
            job_share=_job_share(values),
            second_judge=matching(values, "SAFECB_SECOND_JUDGE", _JUDGE, "the name of a judge"),
            keys=file(values, "SAFECB_KEYS"),
            signing_key=file(values, "SAFECB_SIGNING_KEY"),
            public_keys=file(values, "SAFECB_PUBLIC_KEYS"),
            open=is_on(values, "SAFECB_OPEN"),
            api_keys=keys(values, "SAFECB_API_KEYS"),
            operator_keys=keys(values, "SAFECB_OPERATOR_KEYS"),
            version_choice=matching(values, "SAFECB_VERSION_CHOICE", _CHOICE, "operators or everyone"),
            stale_limit=_stale_limit(values),
            keep_images=int(matching(values, "SAFECB_KEEP_IMAGES", _WHOLE, "a whole number up to 9999999")),
            keep_hours=int(matching(values, "SAFECB_KEEP_HOURS", _WHOLE, "a whole number of hours up to 9999999")),
            drain_s=int(matching(values, "SAFECB_DRAIN_S", _SECONDS, "a whole number of seconds up to 9999")),
            log=matching(values, "SAFECB_LOG", _LOG, "text or json"),
            trusted_proxies=networks(values, "SAFECB_TRUSTED_PROXIES"),
            root_path=_root_path(values),
            server=_server(values),
            server_key=next(iter(keys(values, "SAFECB_SERVER_KEY")), None),
            openai_aliases=is_on(values, "SAFECB_OPENAI_ALIASES"),
            openai_strict=is_on(values, "SAFECB_OPENAI_STRICT"),
        )

    @property
    def judge_share(self) -> float:
        """The share of the images that are judged as they are drawn, in [0, 1]."""
        return float({"all": "1", "off": "0"}.get(self.judge, self.judge.removeprefix("sample:")))

    @property
    def policies(self) -> Path:
        """Folder of the uploaded policies."""
        return self.home / "policies"

    @property
    def bucket_tag(self) -> str | None:
        """Eight hex digits for the bucket, the same on every machine; None without one."""
        return None if self.bucket is None else _tag(self.bucket)

    def place(self, path: Path) -> str:
        """Return the name of a file relative to its setting: for callers, who may not see the server's paths."""
        for setting, root in (("SAFECB_STORE", self.store), ("SAFECB_HOME", self.home)):
            if path.is_relative_to(root):
                return str(setting / path.relative_to(root))
        return path.name


def _present(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of ours that are set."""
    own = {key: value for key, value in environ.items() if key.startswith("SAFECB_")}
    present = {key: value for key, value in own.items() if not _is_link(key, value)}
    for key, value in present.items():
        if key not in _DEFAULTS:
            raise BadSetting(key, "<hidden>", f"no such variable, but one of {', '.join(_DEFAULTS)}")
        if not value.strip():
            raise BadSetting(key, value, "a value; leave the variable unset for its default")
    return present


def _is_link(key: str, value: str) -> bool:
    """Whether Kubernetes set a variable, for a service named "safecb" or "safecb-...": nothing that anybody chose."""
    return _LINK.fullmatch(key) is not None or (key == "SAFECB_PORT" and value.startswith(("tcp://", "udp://")))


def _model(values: Mapping[str, str]) -> str:
    return os.path.expanduser(matching(values, "SAFECB_MODEL", _MODEL, '"embedded", a model folder or a hub name'))


def _bucket(values: Mapping[str, str]) -> str | None:
    """The URL of a store in a bucket, None of one in a folder."""
    if "://" not in values["SAFECB_STORE"]:
        return None
    return matching(values, "SAFECB_STORE", _BUCKET, "a folder, or s3://BUCKET/PREFIX without a slash at its end")


def _store(values: Mapping[str, str], home: Path) -> Path:
    if (bucket := _bucket(values)) is not None:
        return home / "copies" / _tag(bucket)
    return folder(values, "SAFECB_STORE") if values["SAFECB_STORE"] else home / "store"


def _tag(bucket: str) -> str:
    return hashlib.sha256(bucket.encode()).hexdigest()[:8]


def _host(values: Mapping[str, str]) -> str:
    try:
        return str(ipaddress.ip_address(values["SAFECB_HOST"]))
    except ValueError:
        return matching(values, "SAFECB_HOST", _HOST_NAME, "an IP address or a host name")


def _server(values: Mapping[str, str]) -> str | None:
    allowed = "http:// or https:// and an address"
    return matching(values, "SAFECB_SERVER", _URL, allowed) if values["SAFECB_SERVER"] else None


def _stale_limit(values: Mapping[str, str]) -> int | None:
    allowed = "a whole number of seconds from 1 to 9999"
    return int(matching(values, "SAFECB_STALE_LIMIT", _LIMIT, allowed)) if values["SAFECB_STALE_LIMIT"] else None


def _root_path(values: Mapping[str, str]) -> str:
    allowed = 'a path such as "/pictures", without a slash at its end'
    return matching(values, "SAFECB_ROOT_PATH", _ROOT_PATH, allowed) if values["SAFECB_ROOT_PATH"] else ""


def _port(values: Mapping[str, str]) -> int:
    allowed = "a whole number from 0 to 65535 (0 picks a free port)"
    port = int(matching(values, "SAFECB_PORT", _PORT, allowed))
    if port > 65535:
        raise BadSetting("SAFECB_PORT", values["SAFECB_PORT"], allowed)
    return port


def _cores(values: Mapping[str, str]) -> int | None:
    chosen = matching(values, "SAFECB_CORES", _CORES, "auto, or a whole number from 1 to 999")
    return None if chosen == "auto" else int(chosen)


def _job_share(values: Mapping[str, str]) -> float:
    allowed = "a share of the cores from 0.12 to 0.9"
    share = float(matching(values, "SAFECB_JOB_SHARE", _SHARE, allowed))
    if not SHARES[0] <= share <= SHARES[1]:
        raise BadSetting("SAFECB_JOB_SHARE", values["SAFECB_JOB_SHARE"], allowed)
    return share
