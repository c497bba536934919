"""Moves of a version on trial: the beginning and the end of its shadow comparison, and the steps of its canary.

Each is made once, whichever process is first: the others see another epoch. Knows the pointer. Knows nothing of images.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from codebook.moves import Moves, anew
from codebook.pointer import NONE, ActiveRecord, Moved
from codebook.trials.steps import FIRST_SHARE, share_after
from core.errors import Conflict


class TrialMoves(Moves, ABC):
    """The moves of trials, beside those of a person."""

    def check_trial(self, version: str) -> None:
        """Raise as `begin_shadow` would now."""
        self.load(version)
        self._free_for(version)

    @anew
    def begin_shadow(
        self,
        version: str,
        share: float,
        job: str,
        *,
        by: str,
        expected_epoch: int | None = None,
        followed: ActiveRecord | None = None,
    ) -> Moved:
        """Let servers lend a share of their images to a job that compares a version with the active one.

        Raises NotFound, BadCodebook as `load`, and Conflict where the version is active or revoked, where another one
        is on trial or shares the traffic, and if the epoch is not `expected_epoch`.
        """
        self.load(version)
        with self._writing():
            self._pointer.expect(expected_epoch)
            now = self._free_for(version)
            shadow = {"version": version, "share": share, "job": job}
            return self._pointer.move(now.version, by, "shadow", followed, shadow=shadow)

    @anew
    def end_shadow(
        self,
        job: str,
        *,
        by: str,
        reason: str = "",
        evidence: Mapping[str, Any] = NONE,
        followed: ActiveRecord | None = None,
    ) -> Moved:
        """End the comparison of a job, if it goes on; both records are the same where it does not."""
        with self._writing():
            now = self._pointer.read()
            if now.shadow.get("job") != job:
                return now, now
            return self._pointer.move(now.version, by, "shadow", followed, reason=reason, evidence=evidence)

    @anew
    def begin_canary(
        self,
        version: str,
        *,
        by: str,
        job: str = "",
        expected_epoch: int | None = None,
        followed: ActiveRecord | None = None,
        reason: str = "",
        evidence: Mapping[str, Any] = NONE,
    ) -> Moved:
        """Begin the steps of a version: the first share of the traffic. It ends the comparison of `job`.

        Raises as `begin_shadow`.
        """
        self.load(version)
        with self._writing():
            self._pointer.expect(expected_epoch)
            now = self._free_for(version, job)
            traffic = {now.version: 1 - FIRST_SHARE, version: FIRST_SHARE}
            return self._pointer.move(
                now.version, by, "canary", followed, traffic, reason=reason, canary=version, evidence=evidence
            )

    @anew
    def step_canary(
        self,
        *,
        by: str,
        expected_epoch: int,
        followed: ActiveRecord | None = None,
        reason: str = "",
        evidence: Mapping[str, Any] = NONE,
    ) -> Moved:
        """Take the next step of the canary, the last of which activates it.

        Raises Conflict if the epoch is not `expected_epoch` or there is no canary, and as `load`.
        """
        with self._writing():
            self._pointer.expect(expected_epoch)
            now = self._pointer.read()
            if not now.canary:
                raise Conflict("no version's share grows in steps")
            self.load(now.canary)
            share = share_after(now.traffic[now.canary])
            if share == 1:
                return self._pointer.move(now.canary, by, "activate", followed, reason=reason, evidence=evidence)
            traffic = {now.version: 1 - share, now.canary: share}
            return self._pointer.move(
                now.version, by, "canary", followed, traffic, reason=reason, canary=now.canary, evidence=evidence
            )

    def _free_for(self, version: str, job: str = "") -> ActiveRecord:
        """The active record, if a trial of `version` may begin on it, or go on after the comparison of `job`."""
        now = self._pointer.read()
        self._refuse_revoked(version)
        if version == now.version:
            raise Conflict(f"codebook version {version} is active")
        if now.traffic:
            others = ", ".join(name for name in now.traffic if name != now.version)
            raise Conflict(f"{others} shares the traffic; end that first: DELETE /codebooks/traffic")
        if now.shadow and now.shadow["job"] != job:
            raise Conflict(f"{now.shadow['version']} is being compared; end that first: DELETE /codebooks/shadow")
        if job and not now.shadow:
            raise Conflict(f"the comparison of job {job} is over: {now.moved_by} has moved the alias")
        return now
