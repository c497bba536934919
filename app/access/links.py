"""Signed links to images: whoever has one may read its image until it expires, without a key.

The signature is an HMAC over all that the link says; its secret is made at the first link, and shared by all servers
of a deployment. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

from core.atomic import read_or_create
from core.bucket.bucket import Bucket

VALID_S = 3600
SECRET_BYTES = 32
SIGNATURE = "sig"  # parameter of a query: by this name OpenTelemetry's conventions keep its value out of spans


class Links:
    """The links of one deployment. secret: gives the bytes they are signed with; raises NoStorage."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._secret = secret

    def query(self, path: str, **says: str | int) -> str:
        """Return the query of a link to `path`, valid for VALID_S: what it says, `expires` and SIGNATURE."""
        content = {name: str(value) for name, value in says.items()}
        content["expires"] = str(int(time.time()) + VALID_S)
        return urlencode(content | {SIGNATURE: self._signature(path, content)})

    def holds(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether the query of a link to `path` is as it was signed and has not expired."""
        content = {name: value for name, value in query.items() if name != SIGNATURE}
        given, right = query.get(SIGNATURE, ""), self._signature(path, content)
        return hmac.compare_digest(given.encode(), right.encode()) and int(content["expires"]) >= time.time()

    def _signature(self, path: str, content: Mapping[str, str]) -> str:
        message = f"{path}?{urlencode(sorted(content.items()))}".encode()
        return hmac.new(self._secret(), message, hashlib.sha256).hexdigest()


def file_secret(path: Path) -> Callable[[], bytes]:
    """Return what reads the secret from a file, created if missing and readable by its owner alone."""

    def secret() -> bytes:
        return read_or_create(path, lambda: secrets.token_bytes(SECRET_BYTES), 0o600)

    return secret


def shared_secret(bucket: Bucket) -> Callable[[], bytes]:
    """Return what reads the secret from a bucket, once: of all servers, the first to need one has made it."""

    @cache
    def secret() -> bytes:
        bucket.create("link.key", secrets.token_bytes(SECRET_BYTES))
        return bucket.read("link.key") or b""

    return secret
