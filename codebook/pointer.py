"""Active alias of a store: its record, its moves, and the history from which a rollback finds its target.

Knows names of versions. Knows nothing of their content, which the caller has checked, nor of where the records lie
(codebook/places).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from codebook.numbers import number_of
from core.clock import utc_now
from core.errors import Conflict

Move = Literal["initialise", "activate", "rollback", "traffic", "revoke", "restore", "shadow", "canary"]
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ActiveRecord:
    """One state of the active alias.

    epoch: 0 for the first, higher with every activation, rollbacks included.
    previous: the version that was active before; None for the first.
    moved_at: UTC, ISO 8601. moved_by: the operator or job. move: the kind of activation.
    traffic: the share in (0, 1) of each version that draws for callers who name none, the active one included, with
        the sum 1; empty where the active one draws for all. split: the epoch at which these versions began to share.
    revoked: versions under which nothing is drawn any more. reason: of a move that no person made.
    shadow: version, share and job of a shadow comparison that goes on. canary: the version whose share grows in steps.
    evidence: the counts that decided a move that no person made.
    """

    version: str
    epoch: int
    previous: str | None
    moved_at: str
    moved_by: str
    move: Move
    traffic: dict[str, float] = field(default_factory=dict)
    split: int = 0
    revoked: list[str] = field(default_factory=list)
    reason: str = ""
    shadow: dict[str, Any] = field(default_factory=dict)
    canary: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    def drawn_for(self, unit: str) -> str:
        """Return the version that draws for a unit, such as a caller and a prompt: the same one while the split lasts.

        A hash of `split` and the unit, in [0, 1), falls into the share of a version; the active one comes last, so that
        units stay with one other version as its share grows.
        """
        digest = hashlib.blake2b(
            unit.encode("utf-8", "surrogatepass"), digest_size=8, salt=self.split.to_bytes(16, "big")
        )
        place = int.from_bytes(digest.digest(), "big") / 2**64
        for version in sorted(self.traffic.keys() - {self.version}):
            if place < self.traffic[version]:
                return version
            place -= self.traffic[version]
        return self.version


Moved: TypeAlias = tuple[ActiveRecord, ActiveRecord]  # the old record and the new


class Outrun(Conflict):
    """Another process has moved the alias since it was read: read it again, and decide anew."""


class Pointer(ABC):
    """The active alias of a store and its audit log. Only `read` may be called without the place's `writing`."""

    @abstractmethod
    def read(self) -> ActiveRecord:
        """Return the record. Raises NotFound before the first activation, BadCodebook (active) if damaged."""

    @abstractmethod
    def start(self, version: str, by: str) -> None:
        """Activate `version` unless one is active. Raises as `read`."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise NoStorage if an activation could not be written."""

    def expect(self, epoch: int | None) -> None:
        """Raise Conflict if `epoch` is not None and not the current one; otherwise as `read`."""
        record = self.read()
        if epoch is not None and epoch != record.epoch:
            raise Conflict(f"the active codebook has changed: epoch {record.epoch} ({record.version}), not {epoch}")

    def move(
        self,
        version: str,
        by: str,
        move: Move,
        followed: ActiveRecord | None = None,
        traffic: Mapping[str, float] = NONE,
        revoked: Sequence[str] | None = None,
        reason: str = "",
        shadow: Mapping[str, Any] = NONE,
        canary: str = "",
        evidence: Mapping[str, Any] = NONE,
    ) -> Moved:
        """Activate `version` and return the old record and the new; they are the same if nothing changes.

        traffic to evidence: as in ActiveRecord; revoked is None where it does not change. followed: the active record
        of the caller's server. If the store is behind it, such as an older backup, every call is an activation, with an
        epoch above both, so that the server follows. Raises Outrun as `_commit`.
        """
        old, ahead = self.read(), -1 if followed is None else followed.epoch
        is_behind = old != followed and old.epoch <= ahead
        gone = old.revoked if revoked is None else sorted(revoked, key=number_of)
        state = (version, dict(traffic), gone, dict(shadow), canary)
        if (old.version, old.traffic, old.revoked, old.shadow, old.canary) == state and not is_behind:
            return old, old
        epoch = max(old.epoch, ahead, self._highest()) + 1
        split = 0 if not traffic else old.split if old.traffic.keys() == traffic.keys() else epoch
        trial = (reason, dict(shadow), canary, dict(evidence))
        new = ActiveRecord(version, epoch, old.version, utc_now(), by, move, dict(traffic), split, gone, *trial)
        self._commit(old, new)
        return old, new

    def audit(self) -> list[ActiveRecord]:
        """Return every activation, oldest first. Raises BadCodebook (audit) if a line of the log is damaged."""
        moves = self._logged()
        current = self.read()
        return moves if moves and moves[-1].epoch >= current.epoch else [*moves, current]

    def before(self) -> str:
        """Return the target of a rollback. Raises Conflict if there is none, otherwise as `audit`."""
        if not (earlier := self.earlier()):
            raise Conflict(f"nothing to roll back to: no version was active before {self.read().version}")
        return earlier[0].version

    def earlier(self) -> list[ActiveRecord]:
        """Return the targets of successive rollbacks, nearest first, without revoked ones. Raises as `audit`.

        Activations nest like brackets: an activation opens, a rollback closes. So two rollbacks in a row go back two
        versions, and never forward again to the version just left.
        """
        history: list[ActiveRecord] = []
        for record in self.audit():
            if record.move in ("rollback", "revoke") and any(past.version == record.version for past in history):
                while history[-1].version != record.version:
                    history.pop()
            elif not history or record.version != history[-1].version:
                history.append(record)
        revoked = self.read().revoked
        return [record for record in history[-2::-1] if record.version not in revoked]

    @abstractmethod
    def _logged(self) -> list[ActiveRecord]:
        """Return the records in the log, oldest first. Raises BadCodebook (audit) if one is damaged."""

    @abstractmethod
    def _highest(self) -> int:
        """Return the highest epoch in the log, -1 if it has none. A damaged log must not stop an activation."""

    @abstractmethod
    def _commit(self, old: ActiveRecord, new: ActiveRecord) -> None:
        """Write `new`, which takes the place of `old`. Raises Outrun where `old` is no longer the active record."""
