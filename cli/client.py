"""HTTP client of the API, for the command line and the demo.

Knows addresses and responses. Raises SafeCBError with the server's own message.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2

from core.errors import SafeCBError, Unavailable
from core.settings import Settings
from core.wire import UNFINISHED

POLL_EVERY_S = 1.0
PATIENCE_S = 600.0  # one image on a busy CPU


class Client:
    """Client of one server, with an optional key."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE_S)

    @classmethod
    def of(cls, settings: Settings) -> Client:
        """Return a client of the server that the same settings would start."""
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return cls(f"http://{host}:{settings.port}", next(iter(settings.operator_keys + settings.api_keys), None))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(self, prompt: str, n: int, seed: int) -> list[tuple[str, bytes]]:
        """Draw n images under the active version; return the version and the PNG of each."""
        body = {"prompt": prompt, "n": n, "seed": seed}
        images = self._call("POST", "/generate", body)["images"]
        return [(image["codebook"], base64.b64decode(image["b64_png"])) for image in images]

    def improve(self, **body: object) -> str:
        """Start an improve job and return its id."""
        id: str = self._call("POST", "/improve", body)["id"]
        return id

    def plan(self, **body: object) -> dict[str, Any]:
        """Return the plan of an improve job, and start none."""
        return self._call("POST", "/improve", {**body, "dry_run": True})

    def put_policy(self, path: str, data: bytes, media_type: str) -> dict[str, Any]:
        """Upload the file of a policy, or of its benign prompts (NAME/benign); return the policy's summary."""
        return self._call("PUT", f"/policies/{quote(path)}", content=data, headers={"Content-Type": media_type})

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """Yield the state of a job whenever it has changed, until it has ended."""
        last = None
        while True:
            state = self._call("GET", f"/jobs/{job}")
            if state != last:
                yield state
            if state["status"] not in UNFINISHED:
                return
            last = state
            time.sleep(POLL_EVERY_S)

    def active(self) -> str:
        """Return the version the server draws with."""
        version: str = self._call("GET", "/codebooks/active")["version"]
        return version

    def activate(self, version: str) -> None:
        """Activate a version."""
        self._call("POST", f"/codebooks/{version}/activate", {})

    def rollback(self, to: str | None = None) -> str:
        """Roll back to the version before, or to `to`, and return its name."""
        version: str = self._call("POST", "/codebooks/rollback", {"to": to})["new"]["version"]
        return version

    def compare(self, prompt: str, seed: int, versions: tuple[str, str]) -> dict[str, Any]:
        """Draw a prompt under two versions and return the comparison."""
        return self._call("POST", "/codebooks/compare", {"prompt": prompt, "seed": seed, "versions": list(versions)})

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body, content=content, headers=headers)
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}; is `safecb serve` running?") from None
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise SafeCBError(f"{method} {path}: {answer['title']}: {answer['detail']}")
        return answer
