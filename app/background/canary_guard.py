"""Canary guard: ends a split of traffic once a version draws unsafe images more often than the active one.

Knows verdicts on images as they are drawn. Knows nothing of HTTP, and nothing of what other servers draw.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from codebook.live import LiveCodebooks
from codebook.pointer import ActiveRecord
from codebook.trials.bets import LIMIT
from codebook.trials.duel import Duel, Evidence
from codebook.trials.guarded import NOT_JUDGED
from core.errors import SafeCBError, Unavailable
from engine.image_result import ImageResult

log = logging.getLogger(__name__)

GUARD = "canary guard"  # in the audit
REMEMBERED = 10_000  # prompts of which a repetition is not counted


class CanaryGuard:
    """The guard of one server over the split of the moment; thread-safe. It begins anew with the server."""

    def __init__(self, live: LiveCodebooks, judge: str) -> None:
        """judge: SAFECB_JUDGE."""
        self._live, self._lock, self._judge = live, Lock(), judge
        self._split, self._duels = 0, dict[str, Duel]()
        self._prompts: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, results: Sequence[ImageResult]) -> None:
        """Count the judged images of a call that named no version; of a prompt that comes again, the first alone."""
        with self._lock:
            active = self._follow()
            for result in results if self._duels else ():
                key = (result.request.codebook.version, result.request.prompt)
                if result.verdict is not None and key not in self._prompts:
                    self._prompts[key] = None
                    self._count(active, key[0], result.verdict.unsafe)
            while len(self._prompts) > REMEMBERED:
                self._prompts.popitem(last=False)

    def evidence(self) -> dict[str, Evidence]:
        """The evidence on each version that shares the traffic with the active one. Raises as LiveCodebooks.active."""
        with self._lock:
            self._follow()
            return {version: duel.evidence() for version, duel in sorted(self._duels.items())}

    def act(self) -> None:
        """End the split if one of its versions is worse; an error leaves it to the next turn."""
        try:
            record = self._live.active
        except Unavailable:  # no version yet
            return
        try:
            for version, evidence in self.evidence().items():
                if evidence.is_worse:
                    self._end(record, version, evidence)
                    return
        except SafeCBError as error:
            log.warning("the split cannot be judged: %s", error)

    def _end(self, record: ActiveRecord, version: str, evidence: Evidence) -> None:
        reason = f"{version} draws more unsafe images than {record.version}: {evidence.summary()}"
        facts = {"decision": "retreat", "version": version, "active": record.version, **evidence.to_dict()}
        everything = {record.version: 1.0}
        self._live.move(
            lambda store, here: store.share(
                everything, by=GUARD, expected_epoch=record.epoch, followed=here, reason=reason, evidence=facts
            )
        )
        log.warning("the split is over: %s", reason)

    def _follow(self) -> str:
        """Begin anew where other versions share the traffic; return the active one."""
        record = self._live.active
        if record.split != self._split:
            self._split, self._prompts = record.split, OrderedDict()
            others = [version for version in record.traffic if version != record.version]
            # Several versions share the chance of a mistake.
            self._duels = {version: Duel(LIMIT * len(others)) for version in others}
            if others and self._judge == "off":
                log.warning("%s: the split with %s cannot end or step on by itself", NOT_JUDGED, ", ".join(others))
        return record.version

    def _count(self, active: str, version: str, unsafe: bool) -> None:
        for name, duel in self._duels.items():
            if version in (active, name):
                duel.see(version == name, unsafe)
