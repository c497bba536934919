"""Bucket: the objects below a prefix, read, listed, and created where there is none of that name.

Creation is exactly-once: of any number of callers who create one name, in any number of processes, one succeeds. A
server's answer is not believed where it is doubtful: after a refusal, a timeout or an error the object is read back,
and whoever finds the bytes it wrote has created it. So bytes that two callers may write must differ; see log.py.

Knows S3 and its errors. Knows nothing of what the objects mean.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from core.errors import NoBucket

QUICK_S = 3  # timeout of one request for a small object
BULK_S = 120  # of a large one
BULK_BYTES = 1 << 20
AGAIN_S = 0.25  # between two tries
AWAY_S = 0.5  # for which an impatient bucket is not asked again after its server did not answer
UNREACHABLE = "unreachable"  # the state of a bucket that may answer later
UNDECIDED = 20  # refusals of an object that is not there, such as to several racers

_Answer = TypeVar("_Answer")


class Bucket:
    """The objects of `url`, s3://NAME/PREFIX; thread-safe. Every use raises NoBucket where the server does not answer.

    The endpoint, the region and the credentials are those of the standard variables (AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, ...). patience: seconds for which a use tries again while the server does not answer.
    """

    def __init__(self, url: str, patience: float = 0.0) -> None:
        self.url, self._patience = url, patience
        self._away: tuple[float, NoBucket] | None = None  # until when, by the monotonic clock, and why
        self._quick, self._bulk = _store(url, QUICK_S), _store(url, BULK_S)

    def read(self, key: str, *, is_large: bool = False) -> bytes | None:
        """Return the bytes of an object; None if there is none."""
        store = self._bulk if is_large else self._quick

        def get() -> bytes | None:
            try:
                return bytes(obstore.get(store, key).bytes())
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise
                return None

        return self._trying(key, get)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless there is one; return whether it has these bytes now, whoever wrote them."""
        store = self._bulk if len(data) > BULK_BYTES else self._quick

        def put() -> bool | None:
            try:
                obstore.put(store, key, data, mode="create", use_multipart=False)
                return True
            except BaseError as error:
                # A refusal too may be of one's own earlier try, or of two racers of whom neither has landed.
                present = self.read(key, is_large=len(data) > BULK_BYTES)
                if present is None and not isinstance(error, AlreadyExistsError | PreconditionError):
                    raise
                return None if present is None else present == data

        for _ in range(UNDECIDED):
            created = self._trying(key, put)
            if created is not None:
                return created
            time.sleep(AGAIN_S)
        raise NoBucket(f"{self.url}/{key}", UNREACHABLE, "its server refuses an object that it does not have")

    def write(self, key: str, data: bytes) -> None:
        """Write an object, whatever was there: for signs of life, which only one process writes."""
        self._trying(key, lambda: obstore.put(self._quick, key, data, use_multipart=False))

    def names(self, folder: str) -> dict[str, str]:
        """Return the names of the objects below `folder`, which ends in a slash, with their entity tags; sorted."""

        def tags() -> dict[str, str]:
            pages = obstore.list(self._quick, folder)
            return {str(meta["path"]).removeprefix(folder): meta["e_tag"] or "" for page in pages for meta in page}

        return dict(sorted(self._trying(folder, tags).items()))

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly below `folder`, which ends in a slash; sorted."""

        def prefixes() -> list[str]:
            return [str(path) for path in obstore.list_with_delimiter(self._quick, folder)["common_prefixes"]]

        return sorted(path.rstrip("/").rpartition("/")[2] for path in self._trying(folder, prefixes))

    def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        self._trying(key, lambda: obstore.delete(self._quick, key))

    def _trying(self, key: str, call: Callable[[], _Answer]) -> _Answer:
        """Return the answer of `call`, tried again for as long as the patience lasts."""
        ends, away = time.monotonic() + self._patience, self._away
        if away is not None and not self._patience and time.monotonic() < away[0]:
            raise NoBucket(away[1].key, away[1].state, away[1].remedy)
        while True:
            try:
                answer = call()
                self._away = None
                return answer
            except (BaseError, FileNotFoundError) as error:
                if isinstance(error, _HOPELESS) or time.monotonic() >= ends:
                    fault = _fault(f"{self.url}/{key}", error)
                    if not isinstance(error, FileNotFoundError):
                        self._away = time.monotonic() + AWAY_S, fault
                    raise fault from None
                time.sleep(AGAIN_S)


_NO_BUCKET = "NoSuchBucket"  # S3's code of an error
_HOPELESS = (FileNotFoundError, PermissionDeniedError, UnauthenticatedError)


def _fault(name: str, error: Exception) -> NoBucket:
    if isinstance(error, FileNotFoundError):
        return NoBucket(name, "missing", "there is no such bucket")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return NoBucket(name, "not permitted", "the server refuses the credentials (AWS_ACCESS_KEY_ID, ...)")
    first = str(error).strip().splitlines()[0][:200]
    return NoBucket(name, UNREACHABLE, f"the server does not answer as it should ({first})")


def _store(url: str, timeout_s: int) -> S3Store:
    options: Mapping[str, object] = {
        "connect_timeout": "2s",
        "timeout": f"{timeout_s}s",
        "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
    }
    # No retries below ours: of a creation that is tried again only the bytes in the bucket tell the outcome.
    return S3Store.from_url(url, client_options=options, retry_config={"max_retries": 0})  # type: ignore[arg-type]
