"""Trial keeper: takes the next step of a canary, and ends a comparison whose job has ended without a move.

Every server has one; who is first makes the move. Knows counts of images and states of jobs. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from app.background.canary_guard import CanaryGuard
from codebook.live import LiveCodebooks
from codebook.pointer import ActiveRecord
from codebook.trials.steps import images_until, share_after
from core.errors import NotFound, SafeCBError, Unavailable
from records.journal import Journal

log = logging.getLogger(__name__)

STEPS = "canary steps"  # in the audit
KEEPER = "trial keeper"


class TrialKeeper:
    """The keeper of one server; it rests on the guard's counts, which begin anew with the server."""

    def __init__(self, live: LiveCodebooks, guard: CanaryGuard, journal: Journal) -> None:
        self._live, self._guard, self._journal = live, guard, journal

    def act(self) -> None:
        """Make the move that is due, if any; an error leaves it to the next turn."""
        try:
            record = self._live.active
            if record.shadow:
                self._end_orphan(record, record.shadow["job"])
            if record.canary:
                self._step(record)
        except Unavailable as error:  # no version yet, or no disk
            log.debug("trials wait: %s", error)
        except SafeCBError as error:
            log.warning("the trial of a version cannot go on for now: %s", error)

    def _step(self, record: ActiveRecord) -> None:
        evidence = self._guard.evidence().get(record.canary)
        share = record.traffic[record.canary]
        if evidence is None or evidence.images < images_until(share) or evidence.is_worse:
            return
        reason = f"{record.canary} at {share:.0%} draws no more unsafe images: {evidence.summary()}"
        facts = {"decision": "step", "version": record.canary, "active": record.version, "share": share}
        facts |= {"images_needed": images_until(share), **evidence.to_dict()}
        self._live.move(
            lambda store, here: store.step_canary(
                by=STEPS, expected_epoch=record.epoch, followed=here, reason=reason, evidence=facts
            )
        )
        log.info("%s goes from %.0f %% to %.0f %%", record.canary, 100 * share, 100 * share_after(share))

    def _end_orphan(self, record: ActiveRecord, job: str) -> None:
        """End a comparison whose job was cancelled or has failed: the worker may have died before it could.

        A job that is not in the journal here may be in that of another home, which shares the store alone.
        """
        with suppress(NotFound):
            known = self._journal.get(job)
            if not known.ended:
                return
            reason = f"the job is {known.status}"
            self._live.move(lambda store, here: store.end_shadow(job, by=KEEPER, reason=reason, followed=here))
            log.info("the comparison of %s is over: %s", record.shadow["version"], reason)
