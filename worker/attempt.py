"""Attempt at an improve job: from the state on disk to a closed record; each accepted round is published once.

Joins store (versions) and journal (the record) around a model and a loop that the caller passes. The queue delivers at
least once and processes die at any point, so every step is idempotent.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from codebook.signature import Signatures
from codebook.store import CodebookStore
from codebook.value import Codebook
from core.errors import BadCodebook, Conflict, NoStorage, SafeCBError
from core.hints import send_hint
from core.logs import about
from core.settings import Settings
from core.wire import DEFAULT_ROUNDS, UNFINISHED
from engine.model import ImageModel
from records.bucket_flags import open_flags
from records.journal import JobRecord, Journal
from safety.loop import Cancelled, ImproveRequest, Progress, RoundResult
from safety.outcome import RunFacts
from worker.progress import JournalProgress

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # for which a job waits for a bucket that does not answer

CANARY = "canary"  # of a request's `activate`: the last version is rolled out in steps

Load = Callable[[Settings], ImageModel]


class Loop(Protocol):
    """The loop of a job. All its results are kept in `work`, so that a resume computes only the missing ones."""

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: JournalProgress
    ) -> Iterable[RoundResult]:
        """Improve the codebook `start` round by round, its plan first; a resume yields the same rounds."""

    def assess(
        self, model: ImageModel, start: Codebook, end: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> dict[str, Any] | None:
        """Evaluate `end` against `start`, as JSON; None if there is no referee."""


def run(job_id: str, settings: Settings, load: Load, loop: Loop) -> None:
    """Make one attempt at job `job_id` with the model of `load` and the rounds of `loop`.

    The outcome is in the journal. A failure is recorded there and raised again; Conflict means that another attempt
    has taken the job over, and nothing more was written. A failure of the disk is logged instead: if not even the
    record can be written, the job is resumed once it can. Does nothing if the job is closed or being worked on.
    """
    try:
        _attempt(job_id, settings, load, loop)
    except NoStorage as error:
        log.error("job %s: %s", job_id, error.about(error.path))


def _attempt(job_id: str, settings: Settings, load: Load, loop: Loop) -> None:
    about(job_id=job_id)
    journal = Journal.of(settings, PATIENCE_S)
    record = journal.get(job_id)
    if record.status not in UNFINISHED or journal.is_claimed(job_id, record.attempt):
        log.info("job %s needs no attempt", job_id)
        return
    fence = journal.begin_attempt(job_id)
    watch = JournalProgress(journal, job_id, fence)
    with journal.claim(job_id, fence):
        try:
            watch.report("loading", 0, 1, 0)
            result = _rounds(settings, journal, record, watch, load, loop)
        except Cancelled:
            watch.end("cancelled", result=_published(CodebookStore.of(settings, PATIENCE_S), job_id, "cancelled"))
        except Exception as error:
            made = None
            with suppress(SafeCBError):  # it may have failed of its store
                made = _published(CodebookStore.of(settings), job_id, "failed")
            watch.end("failed", result=made, error=f"{type(error).__name__}: {error}")
            raise
        else:
            watch.end("finished", result=result)


def _rounds(
    settings: Settings, journal: Journal, record: JobRecord, watch: JournalProgress, load: Load, loop: Loop
) -> dict[str, Any]:
    model = load(settings)
    store = CodebookStore.of(settings, PATIENCE_S)
    store.initialise(model.base_codebook(), model.facts.shown())
    Signatures.of(settings).check_signing()
    # Decided by the first attempt: the active version may move, a flag may be deleted before the job is resumed.
    start: str = journal.once(record.id, "start", lambda: {"version": store.active().version})["version"]
    parent = start
    flags = open_flags(settings, PATIENCE_S)
    flagged = journal.once(record.id, "flagged", lambda: [(f.prompt, f.category) for f in flags.take(record.id)])
    request, work = _request(record, tuple((p, c) for p, c in flagged)), journal.path(record.id) / "work"
    reason = "no rounds"
    facts, is_independent = RunFacts(), False
    # What is learned and measured is the edit, whatever becomes of images that fire: versions keep the start's mode.
    begun = store.load(start)
    for outcome in loop.rounds(model, begun.in_mode("edit"), request, work, watch):
        version = None
        if outcome.codebook is not None:
            version = _publish(store, outcome, outcome.codebook.in_mode(begun.mode), parent, watch)
            is_independent = request.accept_self_judged or not outcome.run.self_judged
            if is_independent and record.request.get("activate", True) is True:
                _activate(store, version, parent, record.id)
            send_hint(settings, version)
            parent = version
        watch.round(_summary(outcome, version))
        reason, facts = outcome.reason, outcome.run
    result = {"version": None, "start": start, "reason": reason, **asdict(facts)}
    if parent == start:
        return result
    if is_independent and record.request.get("activate") == CANARY:
        _begin_canary(settings, store, parent, start, record.id)
    before, after = (codebook.in_mode("edit") for codebook in (begun, store.load(parent)))
    assessment = loop.assess(model, before, after, request, work, watch)
    return {**result, "version": parent, "assessment": assessment}


def _publish(store: CodebookStore, outcome: RoundResult, draft: Codebook, parent: str, watch: JournalProgress) -> str:
    """Publish an accepted round, once however often it is replayed, and return its version."""
    manifest = store.publish(
        draft,
        parent=parent,
        job=watch.job_id,
        round=outcome.round,
        figures=outcome.figures,
        gates=outcome.gates,
        report={**outcome.report, "seconds": watch.seconds()},
        images=outcome.images,
        fence=watch.fence,
    )
    return manifest.version


def _published(store: CodebookStore, job_id: str, reason: str) -> dict[str, Any] | None:
    """The result of a job without its end: its last version, which stays; None if it has published none."""
    made = [manifest for manifest in store.versions() if manifest.job == job_id]
    return {"version": made[-1].version, "start": made[0].parent, "reason": reason} if made else None


def _activate(store: CodebookStore, version: str, parent: str, job_id: str) -> None:
    """Activate `version` if its parent draws for all, and only once: any move in between takes precedence."""
    now = store.active()
    if now.version != parent or now.traffic or now.shadow:
        return
    try:
        if all(move["version"] != version for move in store.audit()):
            store.activate(version, by=f"job {job_id}", expected_epoch=now.epoch)
    except (Conflict, BadCodebook) as error:  # another activation came first, or the audit log is damaged
        log.info("%s is published and not activated: %s", version, error)


def _begin_canary(settings: Settings, store: CodebookStore, version: str, start: str, job_id: str) -> None:
    """Roll `version` out in steps if the start of the job draws for all, and only once, as `_activate`."""
    now = store.active()
    if now.version != start or now.traffic or now.shadow:
        return
    try:
        if all(move["canary"] != version for move in store.audit()):
            store.begin_canary(version, by=f"job {job_id}", expected_epoch=now.epoch)
            send_hint(settings, version)
    except (Conflict, BadCodebook) as error:
        log.info("%s is published and not rolled out: %s", version, error)


def _request(record: JobRecord, flagged: tuple[tuple[str, str | None], ...]) -> ImproveRequest:
    """Return the loop's request, with the flagged prompts.

    Without a seed, it is derived from the job's id: new samples per job, the same ones in each attempt.
    """
    body = record.request
    seed = body.get("seed")
    return ImproveRequest(
        prompts=_tuple(body.get("prompts")),
        categories=_tuple(body.get("categories")),
        max_rounds=body.get("max_rounds") or DEFAULT_ROUNDS,
        seed=zlib.crc32(record.id.encode()) if seed is None else seed,
        flagged=flagged,
        policy=body.get("policy"),
        second_judge=body.get("second_judge"),
        accept_self_judged=body.get("accept_self_judged", False),
        images=(body.get("budget") or {}).get("images"),
        minutes=(body.get("budget") or {}).get("minutes"),
    )


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _summary(outcome: RoundResult, version: str | None) -> dict[str, Any]:
    return {
        "round": outcome.round,
        "accepted": outcome.accepted,
        "reason": outcome.reason,
        "fault": outcome.fault,
        "failing": outcome.failing,
        "decision": outcome.decision,
        "version": version,
        "figures": outcome.figures,
        "gates": outcome.gates,
    }
