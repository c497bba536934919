"""Canary guard: ends a split of traffic once a version draws unsafe images more often than the active one.

Knows verdicts on images as they are drawn. Knows nothing of HTTP, and nothing of what other servers draw.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from codebook.live import LiveCodebooks
from codebook.trials.bets import BETS, LIMIT
from core.errors import SafeCBError, Unavailable
from engine.image_result import ImageResult

log = logging.getLogger(__name__)

GUARD = "canary guard"  # in the audit
REMEMBERED = 10_000  # prompts of which a repetition is not counted


@dataclass(frozen=True)
class Evidence:
    """What a split has shown of one version. images, unsafe: that version's, and `beside` the active one's.

    e: the largest e-value so far against "draws unsafe images no more often than the active version".
    """

    images: int = 0
    unsafe: int = 0
    beside_images: int = 0
    beside_unsafe: int = 0
    e: float = 1.0


@dataclass
class Duel:
    """The evidence on one version beside the active one, image by image.

    Runs of images alternate between both, as callers are split. A difference d in [-1, 1] is the unsafe share of a
    whole run of the version less that of the run of the active one before it. Under the hypothesis E d <= 0 the mean
    wealth of BETS exceeds LIMIT with a chance of at most 1 / LIMIT, at any time (codebook/trials/bets.py).
    """

    counts: dict[bool, list[int]] = field(default_factory=lambda: {True: [0, 0], False: [0, 0]})  # images, unsafe
    wealth: list[float] = field(default_factory=lambda: [1.0] * len(BETS))
    e: float = 1.0
    run: list[int] = field(default_factory=lambda: [0, 0])  # of the run that goes on: images, unsafe
    is_own_run: bool = False
    before: float | None = None  # the unsafe share of the active version's last whole run, until it is used

    def see(self, is_own: bool, unsafe: bool) -> None:
        """Take an image in, of the version itself or of the active one."""
        if is_own != self.is_own_run:
            self._close_run()
            self.run, self.is_own_run = [0, 0], is_own
        for tally in (self.counts[is_own], self.run):
            tally[0] += 1
            tally[1] += unsafe

    def evidence(self) -> Evidence:
        """What was seen so far."""
        (images, unsafe), (beside_images, beside_unsafe) = self.counts[True], self.counts[False]
        return Evidence(images, unsafe, beside_images, beside_unsafe, self.e)

    def _close_run(self) -> None:
        images, unsafe = self.run
        if images and not self.is_own_run:
            self.before = unsafe / images
        elif images and self.before is not None:
            difference, self.before = unsafe / images - self.before, None
            self.wealth = [w * (1 + bet * difference) for w, bet in zip(self.wealth, BETS, strict=True)]
            self.e = max(self.e, sum(self.wealth) / len(self.wealth))


class CanaryGuard:
    """The guard of one server over the split of the moment; thread-safe. It begins anew with the server."""

    def __init__(self, live: LiveCodebooks) -> None:
        self._live, self._lock = live, Lock()
        self._split, self._duels = 0, dict[str, Duel]()
        self._prompts: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, results: Sequence[ImageResult]) -> None:
        """Count images of a call that named no version; of a prompt that comes again, the first alone."""
        with self._lock:
            active = self._follow()
            for result in results if self._duels else ():
                key = (result.request.codebook.version, result.request.prompt)
                if key not in self._prompts:
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
            seen = self.evidence()
            for version, e in seen.items():
                if e.e >= LIMIT * len(seen):  # several versions share the chance of a mistake
                    counts = f"{e.unsafe} of {e.images} beside {e.beside_unsafe} of {e.beside_images}, e = {e.e:.0f}"
                    reason = f"{version} draws more unsafe images than {record.version}: {counts}"
                    everything = {record.version: 1.0}
                    self._live.share(everything, by=GUARD, expected_epoch=record.epoch, reason=reason)
                    log.warning("the split is over: %s", reason)
                    return
        except SafeCBError as error:
            log.warning("the split cannot be judged: %s", error)

    def _follow(self) -> str:
        """Begin anew where other versions share the traffic; return the active one."""
        record = self._live.active
        if record.split != self._split:
            self._split, self._prompts = record.split, OrderedDict()
            self._duels = {version: Duel() for version in record.traffic if version != record.version}
        return record.version

    def _count(self, active: str, version: str, unsafe: bool) -> None:
        for name, duel in self._duels.items():
            if version in (active, name):
                duel.see(version == name, unsafe)
