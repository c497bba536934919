"""Moves of a store's active alias: activation, rollback, shares of traffic, revocation; and their audit.

Each of them but a restoration ends a shadow comparison and the steps of a canary; those have moves of their own
(codebook/trials/trial_moves.py).

Knows the pointer. Knows nothing of a version's files: whoever moves to a version loads it first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from codebook.identity import Identity
from codebook.pointer import NONE, ActiveRecord, Moved, Outrun, Pointer
from codebook.value import Codebook
from core.errors import BadCodebook, BadInput, Conflict, NotFound

BASE = "v0"
MOST_SHARING = 8  # versions of a split: all of them stay in memory
TRIES = 20  # of a move that others outrun

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def anew(move: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a move be decided anew, on the new state, where another process has moved the alias in between."""

    @wraps(move)
    def tried(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for _ in range(TRIES):
            with suppress(Outrun):
                return move(*args, **kwargs)
        return move(*args, **kwargs)

    return tried


class Moves(ABC):
    """The active alias of a store; its other half, the versions, is CodebookStore."""

    _pointer: Pointer

    @abstractmethod
    def load(self, version: str) -> Codebook:
        """Return a version after every check. Raises NotFound and BadCodebook."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Identity]:
        """Hold the lock of all writers."""

    def active(self) -> ActiveRecord:
        """Return the active record. Raises BadCodebook (active) if it is damaged."""
        return self._pointer.read()

    @anew
    def activate(
        self, version: str, *, by: str, expected_epoch: int | None = None, followed: ActiveRecord | None = None
    ) -> Moved:
        """Activate a version after every check, for all callers, and return the old record and the new.

        Both are the same if nothing changes. followed: the active record of the caller's server; see Pointer.move.
        Raises NotFound, BadCodebook as `load`, and Conflict if the epoch is not `expected_epoch` or it is revoked.
        """
        self.load(version)
        with self._writing():
            self._pointer.expect(expected_epoch)
            self._refuse_revoked(version)
            return self._pointer.move(version, by, "activate", followed)

    @anew
    def rollback(
        self, *, by: str, to: str | None = None, expected_epoch: int | None = None, followed: ActiveRecord | None = None
    ) -> Moved:
        """Activate the version that was active before this one, or `to`; return the old record and the new.

        While versions share the traffic, a rollback without `to` ends that, and the active one draws for all. Two
        rollbacks in a row go back two versions. followed: as `activate`. Raises as `activate`, Conflict if there is
        nothing to roll back to and BadCodebook (audit) if the log is damaged.
        """
        with self._writing():
            self._pointer.expect(expected_epoch)
            now = self._pointer.read()
            if to is None:
                to = now.version if now.traffic else self._pointer.before()
            self.load(to)
            self._refuse_revoked(to)
            return self._pointer.move(to, by, "rollback", followed)

    @anew
    def share(
        self,
        traffic: Mapping[str, float],
        *,
        by: str,
        expected_epoch: int | None = None,
        followed: ActiveRecord | None = None,
        reason: str = "",
        evidence: Mapping[str, Any] = NONE,
    ) -> Moved:
        """Share the traffic of callers who name no version; return as `activate`. All of the active one ends a split.

        traffic, reason, evidence: as in ActiveRecord. Raises as `activate`, and BadInput for shares that are none or
        miss the active one.
        """
        for version in traffic:
            self.load(version)
        with self._writing():
            self._pointer.expect(expected_epoch)
            now = self._pointer.read()
            _check(traffic, now.version)
            for version in traffic:
                self._refuse_revoked(version)
            shares = {version: share for version, share in traffic.items() if share > 0}
            split = {} if len(shares) == 1 else shares
            return self._pointer.move(now.version, by, "traffic", followed, split, reason=reason, evidence=evidence)

    @anew
    def revoke(self, version: str, *, by: str, followed: ActiveRecord | None = None) -> Moved:
        """Draw nothing under a version any more, whoever names it; return as `activate`. It ends its split or trial.

        If it is active, the nearest version before it that can be loaded becomes active, or v0. Raises NotFound,
        BadInput for v0.
        """
        if version == BASE:
            raise BadInput("version", BASE, "another one: something must be left to draw with")
        self._known(version)
        with self._writing():
            now = self._pointer.read()
            revoked = {*now.revoked, version}
            target = self._sound_before(revoked) if now.version == version else now.version
            traffic = {} if version in now.traffic else now.traffic
            is_tried = version in (now.version, now.shadow.get("version"))
            shadow, canary = {} if is_tried else now.shadow, now.canary if traffic else ""
            return self._pointer.move(
                target, by, "revoke", followed, traffic, sorted(revoked), shadow=shadow, canary=canary
            )

    @anew
    def restore(self, version: str, *, by: str, followed: ActiveRecord | None = None) -> Moved:
        """Allow a revoked version again, without activating it; return as `activate`. Raises NotFound."""
        self._known(version)
        with self._writing():
            now = self._pointer.read()
            revoked = [name for name in now.revoked if name != version]
            return self._pointer.move(
                now.version, by, "restore", followed, now.traffic, revoked, shadow=now.shadow, canary=now.canary
            )

    def earlier(self) -> list[ActiveRecord]:
        """Return the targets of successive rollbacks, nearest first. Raises as `audit`."""
        with self._writing():
            return self._pointer.earlier()

    def audit(self) -> list[dict[str, Any]]:
        """Return every move, oldest first, as JSON. Raises BadCodebook (audit) for a damaged log."""
        return [asdict(record) for record in self._pointer.audit()]

    def _sound_before(self, revoked: Container[str]) -> str:
        """Return the nearest target of a rollback that loads and is not revoked, or v0: a revocation must succeed."""
        with suppress(BadCodebook):  # a damaged audit log
            for record in self._pointer.earlier():
                if record.version not in revoked:
                    with suppress(BadCodebook, NotFound):
                        return self.load(record.version).version
        return BASE

    @abstractmethod
    def _known(self, version: str) -> None:
        """Raise NotFound unless there is such a version, sound or not."""

    def _refuse_revoked(self, version: str) -> None:
        if version in self._pointer.read().revoked:
            raise Conflict(f"codebook version {version} is revoked; restore it first")


def _check(traffic: Mapping[str, float], active: str) -> None:
    """Raise BadInput unless these are shares of versions, the active one among them."""
    if len(traffic) > MOST_SHARING:
        raise BadInput("traffic", dict(traffic), f"at most {MOST_SHARING} versions")
    if active not in traffic or traffic[active] <= 0:
        raise BadInput("traffic", dict(traffic), f"a share of the active version {active} too")
    if not all(0 <= share <= 1 for share in traffic.values()) or not math.isclose(
        sum(traffic.values()), 1, abs_tol=1e-6
    ):
        raise BadInput("traffic", dict(traffic), "shares from 0 to 1 with the sum 1")
