"""Shadow job: compares a version with the active one on live images that servers lend, until the rule decides.

Joins the list of images, the examiner of pairs, the rule and the moves of the store. The counts stand in the job's
record, so that another attempt goes on with them; a pair that was taken and not written is lost, never counted twice.
A decision stands in the audit before it stands in the record: an attempt that finds the comparison over looks there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from codebook.store import ActiveRecord, CodebookStore
from codebook.trials.rule import Differences, Trial
from codebook.value import Codebook
from core.errors import BadCodebook, Conflict, NoStorage
from core.hints import send_hint
from core.logs import about
from core.settings import Settings
from core.wire import UNFINISHED, RedisNames
from engine.model import ImageModel
from records.journal import JobRecord, Journal
from records.shadow_images import LiveImage, ShadowList
from safety.runtime.progress import Cancelled, Progress
from worker.attempt import PATIENCE_S, Load
from worker.progress import JournalProgress

log = logging.getLogger(__name__)

BATCH = 32  # images taken together
POLL_S = 1.0  # while no images are lent
WRITE_EVERY_S = 5.0
BEGIN_S = 10.0  # for which a job waits for the move that begins its comparison
LONGEST_S = 12 * 3600.0  # of a comparison for which too few images come: it ends undecided


class Examiner(Protocol):
    """Compares images of callers with what the candidate makes of them."""

    def examine(self, images: Sequence[LiveImage]) -> list[Differences]:
        """The differences of each pair, by measure."""


class OpenExaminer(Protocol):
    """Makes the examiner of a job. Raises where a judge cannot be had, before anything is compared."""

    def __call__(
        self, settings: Settings, model: ImageModel, active: Codebook, candidate: Codebook, work: Path, watch: Progress
    ) -> Examiner:
        """active, candidate: the codebooks that are compared; work: a folder; watch: takes reports."""


@dataclass
class Comparison:
    """One attempt at the job `record` in progress; it takes the reports of its examiner."""

    settings: Settings
    journal: Journal
    record: JobRecord
    watch: JournalProgress
    store: CodebookStore
    images: ShadowList
    trial: Trial
    is_comparing: bool = False

    @property
    def by(self) -> str:
        """The name for the audit."""
        return f"job {self.record.id}"

    @property
    def version(self) -> str:
        """The version that is compared with the active one."""
        version: str = self.record.request["version"]
        return version

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """See Progress: steps of the calibration are shown; of a pair it is enough that the job goes on."""
        if self.is_comparing:
            phase, done, total = "compare", self.trial.pairs, self.trial.most
        self.watch.report(phase, done, total, round)

    def following(self) -> ActiveRecord | None:
        """The active record while it names this job, else None: a person has moved the alias."""
        active = self.store.active()
        return active if active.shadow.get("job") == self.record.id else None

    def begun(self) -> ActiveRecord | None:
        """As `following`, but wait for the move that begins the comparison: the job is written before it."""
        deadline = time.monotonic() + BEGIN_S
        while (active := self.following()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return active

    def compare(self, examiner: Examiner, version: str) -> str:
        """Take pairs until there is a decision, and return it; "stopped" where a person was first."""
        self.is_comparing, self.trial = True, self.trial.with_point()
        while (decision := self.trial.decision) is None:
            self.report("compare", 0, 0, 0)
            if self.following() is None:
                return "stopped"
            if self._is_long():
                return "undecided"
            lent = [image for image in self.images.take(self.record.id, BATCH) if image.version == version]
            if not lent:
                time.sleep(POLL_S)
            for differences in examiner.examine(lent) if lent else ():
                if self.trial.decision is None:
                    self.trial = self.trial.seen(differences)
            self.trial = self.trial.with_point()
            self.watch.facts = {"trial": self.trial.to_dict()}
        return decision

    def conclude(self, decision: str, active: str) -> str:
        """Make the move of a decision, once; return the decision, or "stopped" where another move came first."""
        evidence = {"decision": decision, "version": self.version, "active": active, **self.trial.to_dict()}
        reason = f"{_WORDS[decision].format(self.version, active)}: {self.trial.summary()}"
        try:
            if decision == "promote" and self.record.request.get("steps", True):
                self.store.begin_canary(self.version, by=self.by, job=self.record.id, reason=reason, evidence=evidence)
            else:
                self.store.end_shadow(self.record.id, by=self.by, reason=reason, evidence=evidence)
        except Conflict as error:
            log.info("%s: %s", reason, error)
            return "stopped"
        send_hint(self.settings, self.version)
        return decision

    def concluded(self) -> Mapping[str, Any] | None:
        """The evidence of this job's own decision, where a move was made of it: by an attempt that died after it."""
        try:
            moves = self.store.audit()
        except BadCodebook as error:  # the log is damaged
            log.warning("whether job %s has decided is not known: %s", self.record.id, error)
            return None
        return next(
            (move["evidence"] for move in reversed(moves) if move["moved_by"] == self.by and move["evidence"]), None
        )

    def give_up(self, reason: str) -> None:
        """End the comparison after an error or a cancellation; a store that is away leaves it to the servers."""
        self.images.clear(self.record.id)
        with suppress(NoStorage):
            self.store.end_shadow(self.record.id, by=self.by, reason=reason)
            send_hint(self.settings, self.version)

    def _is_long(self) -> bool:
        begun = datetime.fromisoformat(self.record.created)
        return (datetime.now(UTC) - begun).total_seconds() > LONGEST_S


_WORDS: Mapping[str, str] = {
    "retreat": "{0} is worse than {1}",
    "promote": "{0} is as good as {1}",
    "undecided": "{0} is neither worse than {1} nor shown to be as good",
}


def run_shadow(job_id: str, settings: Settings, load: Load, open_examiner: OpenExaminer) -> None:
    """Make one attempt at the shadow job `job_id`; recorded and raised as worker/attempt.py does."""
    try:
        _attempt(job_id, settings, load, open_examiner)
    except NoStorage as error:
        log.error("job %s: %s", job_id, error.about(error.path))


def _attempt(job_id: str, settings: Settings, load: Load, open_examiner: OpenExaminer) -> None:
    about(job_id=job_id)
    journal = Journal.of(settings, PATIENCE_S)
    record = journal.get(job_id)
    if record.status not in UNFINISHED or journal.is_claimed(job_id, record.attempt):
        log.info("job %s needs no attempt", job_id)
        return
    fence = journal.begin_attempt(job_id)
    watch = JournalProgress(journal, job_id, fence, WRITE_EVERY_S)
    trial = Trial(record.request["margin"], record.request["pairs"])
    if (written := record.progress.get("trial")) is not None:
        trial = Trial.read(written)
    store = CodebookStore.of(settings, PATIENCE_S)
    with journal.claim(job_id, fence), closing(_images(settings)) as images:
        job = Comparison(settings, journal, record, watch, store, images, trial)
        watch.facts = {"trial": trial.to_dict()}
        try:
            result = _run(job, load, open_examiner)
        except Cancelled:
            if (evidence := job.concluded()) is not None:  # an attempt died between its move and the record
                watch.end("finished", result={**evidence})
            else:
                job.give_up("the job was cancelled")
                watch.end("cancelled")
        except Exception as error:
            if journal.get(job_id).attempt != fence:  # another attempt goes on with the comparison
                raise
            job.give_up(f"the job failed: {type(error).__name__}: {error}")
            watch.end("failed", error=f"{type(error).__name__}: {error}")
            raise
        else:
            watch.end("finished", result=result)
            images.clear(job_id)


def _run(job: Comparison, load: Load, open_examiner: OpenExaminer) -> dict[str, Any]:
    job.watch.report("loading", 0, 1, 0)
    active, decision = job.begun(), "stopped"
    if active is not None:
        model = load(job.settings)
        job.store.initialise(model.base_codebook(), model.facts.shown())
        both = job.store.load(active.version), job.store.load(job.version)
        work = job.journal.path(job.record.id) / "work"
        examiner = open_examiner(job.settings, model, *both, work, job)
        decision = job.compare(examiner, active.version)
    if active is not None and decision != "stopped":
        decision = job.conclude(decision, active.version)
    if decision == "stopped" and (evidence := job.concluded()) is not None:
        return {**evidence}
    compared = None if active is None else active.version
    return {"decision": decision, "version": job.version, "active": compared, **job.trial.to_dict()}


def _images(settings: Settings) -> ShadowList:
    if settings.redis_url is None:
        raise Conflict("SAFECB_REDIS_URL is not set: servers lend images through Redis")
    return ShadowList(settings.redis_url, RedisNames.of(settings).lent)
