"""HTTP client of the API, for the command line and the demo.

Knows addresses and responses. Raises SafeCBError with the server's own message.
"""

from __future__ import annotations

import base64
import ipaddress
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from core.errors import SafeCBError, Unavailable
from core.settings import Settings
from core.wire import UNFINISHED

POLL_EVERY_S = 1.0
PAGE = 1000  # versions of one answer
PATIENCE_S = 600.0  # one image on a busy CPU


@dataclass(frozen=True)
class DrawnImage:
    """One image: its PNG file, what it was drawn with, and the model's own verdict, None where it was not judged."""

    id: str
    png: bytes
    seed: int
    codebook: str
    unsafe: bool | None
    category: str | None


class Client:
    """Client of one server, with an optional key. Raises Unavailable for proxy settings that cannot be used."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:  # no proxy can reach this machine's own loopback
            self._http = httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=not _is_local(url))
        except (ImportError, ValueError) as error:
            raise Unavailable(f"the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from None

    @classmethod
    def of(cls, settings: Settings) -> Client:
        """Return a client of SAFECB_SERVER or, without it, of the server that the same settings would start."""
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        if settings.server is not None:  # another server, which must not see this one's keys
            return cls(settings.server, settings.server_key)
        own = next(iter(settings.operator_keys + settings.api_keys), None)
        return cls(f"http://{host}:{settings.port}", settings.server_key or own)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, prompt: str, n: int = 1, seed: int | None = None, codebook: str = "active", **sampling: float | None
    ) -> list[DrawnImage]:
        """Draw n images; without a seed the server chooses one. sampling: further fields of POST /generate."""
        body = {"prompt": prompt, "n": n, "seed": seed, "codebook": codebook, **sampling}
        return [
            DrawnImage(
                image["id"],
                base64.b64decode(image["b64_png"]),
                image["seed"],
                image["codebook"],
                image["safety"]["unsafe"],
                image["safety"]["category"],
            )
            for image in self._call("POST", "/generate", body)["images"]
        ]

    def improve(self, **body: object) -> str:
        """Start an improve job and return its id."""
        id: str = self._call("POST", "/improve", body)["id"]
        return id

    def plan(self, **body: object) -> dict[str, Any]:
        """Return the plan of an improve job, and start none."""
        plan: dict[str, Any] = self._call("POST", "/improve", {**body, "dry_run": True})
        return plan

    def put_policy(self, path: str, data: bytes, media_type: str) -> dict[str, Any]:
        """Upload the file of a policy, or of its benign prompts (NAME/benign); return the policy's summary."""
        summary: dict[str, Any] = self._call(
            "PUT", f"/policies/{quote(path)}", content=data, headers={"Content-Type": media_type}
        )
        return summary

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

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, newest first."""
        jobs: list[dict[str, Any]] = self._call("GET", "/jobs")
        return jobs

    def job(self, id: str) -> dict[str, Any]:
        """Return a job."""
        job: dict[str, Any] = self._call("GET", f"/jobs/{quote(id)}")
        return job

    def cancel(self, id: str) -> dict[str, Any]:
        """Cancel a job, and return it."""
        job: dict[str, Any] = self._call("DELETE", f"/jobs/{quote(id)}")
        return job

    def flags(self, state: str | None = None) -> list[dict[str, Any]]:
        """Return all flags, or those in a state, newest first."""
        flags: list[dict[str, Any]] = self._call("GET", "/flags" + (f"?state={quote(state)}" if state else ""))
        return flags

    def approve(self, id: str, category: str | None = None) -> dict[str, Any]:
        """Approve a flag, and return it."""
        flag: dict[str, Any] = self._call("POST", f"/flags/{quote(id)}/approve", {"category": category})
        return flag

    def reject(self, id: str) -> dict[str, Any]:
        """Reject a flag, and return it."""
        flag: dict[str, Any] = self._call("POST", f"/flags/{quote(id)}/reject")
        return flag

    def codebooks(self) -> dict[str, Any]:
        """Return all versions, oldest first, and the active one."""
        listing: dict[str, Any] = self._call("GET", f"/codebooks?limit={PAGE}")
        page = listing["versions"]
        while len(page) == PAGE:
            page = self._call("GET", f"/codebooks?limit={PAGE}&before={page[0]['version']}")["versions"]
            listing["versions"] = page + listing["versions"]
        return listing

    def audit(self) -> list[dict[str, Any]]:
        """Return the newest activations, newest first."""
        moves: list[dict[str, Any]] = self._call("GET", "/codebooks/audit")
        return moves

    def codebook(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version."""
        manifest: dict[str, Any] = self._call("GET", f"/codebooks/{quote(version)}")
        return manifest

    def active(self) -> str:
        """Return the version the server draws with."""
        version: str = self._call("GET", "/codebooks/active")["version"]
        return version

    def activate(self, version: str) -> tuple[str, str]:
        """Activate a version; return the one that was active before, and the one that is."""
        moved = self._call("POST", f"/codebooks/{quote(version)}/activate", {})
        return moved["old"]["version"], moved["new"]["version"]

    def traffic(self) -> dict[str, Any]:
        """Return the shares of traffic by version, and what the server drew under each."""
        shares: dict[str, Any] = self._call("GET", "/codebooks/traffic")
        return shares

    def share(self, traffic: dict[str, float]) -> dict[str, Any]:
        """Share the traffic by version, and return the active record."""
        record: dict[str, Any] = self._call("PUT", "/codebooks/traffic", traffic)["new"]
        return record

    def revoke(self, version: str) -> dict[str, Any]:
        """Revoke a version, and return the active record."""
        record: dict[str, Any] = self._call("POST", f"/codebooks/{quote(version)}/revoke")["new"]
        return record

    def shadow(self, version: str, **body: object) -> dict[str, Any]:
        """Begin the shadow comparison of a version, and return its state."""
        state: dict[str, Any] = self._call("POST", f"/codebooks/{quote(version)}/shadow", body)
        return state

    def shadow_state(self) -> dict[str, Any]:
        """Return the state of the shadow comparison that goes on, or of the last one."""
        state: dict[str, Any] = self._call("GET", "/codebooks/shadow")
        return state

    def end_shadow(self) -> dict[str, Any]:
        """End the shadow comparison that goes on, and return the active record."""
        record: dict[str, Any] = self._call("DELETE", "/codebooks/shadow")["new"]
        return record

    def canary(self, version: str) -> dict[str, Any]:
        """Roll a version out in steps, and return the active record."""
        record: dict[str, Any] = self._call("POST", f"/codebooks/{quote(version)}/canary", {})["new"]
        return record

    def restore(self, version: str) -> dict[str, Any]:
        """Allow a revoked version again, and return the active record."""
        record: dict[str, Any] = self._call("POST", f"/codebooks/{quote(version)}/restore")["new"]
        return record

    def derive(self, version: str, mode: str) -> dict[str, Any]:
        """Publish a version's tables in another mode; return the new version's manifest."""
        manifest: dict[str, Any] = self._call("POST", f"/codebooks/{quote(version)}/derive", {"mode": mode})
        return manifest

    def rollback(self, to: str | None = None) -> tuple[str, str]:
        """Roll back to the version before, or to `to`; return as `activate`."""
        moved = self._call("POST", "/codebooks/rollback", {"to": to})
        return moved["old"]["version"], moved["new"]["version"]

    def compare(self, prompt: str, seed: int | None, versions: tuple[str, str]) -> dict[str, Any]:
        """Draw a prompt under two versions and return the comparison."""
        body = {"prompt": prompt, "seed": seed, "versions": list(versions)}
        comparison: dict[str, Any] = self._call("POST", "/codebooks/compare", body)
        return comparison

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # JSON
        try:
            response = self._http.request(method, path, json=body, content=content, headers=headers)
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}; is `safecb serve` running?") from None
        try:
            answer = response.json()
        except ValueError:
            kind = response.headers.get("content-type", "nothing")
            asked = f"{self._http.base_url} answered {response.status_code} with {kind}, not JSON"
            raise Unavailable(f"{asked}; is it a Safe-CB server, and no proxy between?") from None
        if response.is_error:
            known = answer if isinstance(answer, dict) else {}
            title, detail = known.get("title", response.status_code), known.get("detail", "no detail")
            raise SafeCBError(f"{method} {path}: {title}: {detail}")
        return answer


def _is_local(url: str) -> bool:
    """Whether a URL is of this machine's loopback."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
