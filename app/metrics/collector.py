"""Gauges that are read from the parts of a server at each scrape; nothing of it runs while images are drawn.

Knows the service's parts. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.service import Service
from codebook.trials.cusum import LIMIT
from core.errors import SafeCBError

log = logging.getLogger(__name__)


class ServiceCollector:
    """The gauges of one server. What cannot be read at a scrape is left out of it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as of now."""
        parts = (
            self._state,
            self._queue,
            self._codebook,
            self._traffic,
            self._canary,
            self._shadow,
            self._job,
            self._redis,
            self._storage,
        )
        for part in parts:
            yield from self._read(part)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering the collector must not read the service."""
        return ()

    def _read(self, part: Callable[[], Iterable[Metric]]) -> list[Metric]:
        try:
            return list(part())
        except (SafeCBError, sqlite3.Error) as error:
            log.debug("%s is left out of a scrape: %s", part.__name__, error)
            return []

    def _state(self) -> Iterable[Metric]:
        service = self._service
        ready = service.is_open and not (service.stopping or service.is_broken or service.failure)
        yield _gauge("safecb_ready", "Whether the server draws images.", float(ready))

    def _queue(self) -> Iterable[Metric]:
        load = self._service.engine.scheduler.load()
        yield _gauge("safecb_waiting_images", "Images that wait for their first token.", load.waiting)
        yield _gauge("safecb_drawing_images", "Images in the batch.", load.drawing)
        yield _gauge("safecb_finishing_images", "Images being decoded and judged.", load.finishing)
        yield _gauge("safecb_kv_rows_used", "KV rows in use.", load.rows)
        yield _gauge("safecb_kv_rows", "KV rows of the batch.", load.kv_rows)
        yield _gauge("safecb_step_seconds", "Mean seconds from one step to the next.", load.step_s)
        yield _gauge("safecb_accepted_tokens", "Mean tokens that an image gets in a step.", load.accepted)
        yield _gauge("safecb_drawing_threads", "Threads of a step while nothing is postprocessed.", load.threads)

    def _codebook(self) -> Iterable[Metric]:
        active, content_hash = self._service.live.following()
        info = GaugeMetricFamily(
            "safecb_codebook_info", "The version that draws here: 1.", labels=("codebook", "codebook_hash")
        )
        info.add_metric((active.version, content_hash), 1)
        yield info
        yield CounterMetricFamily(
            "safecb_codebook_moves", "Moves of the active alias that this server follows.", active.epoch
        )
        share = GaugeMetricFamily("safecb_codebook_share", "Share of the traffic by version.", labels=("codebook",))
        for version, part in (active.traffic or {active.version: 1.0}).items():
            share.add_metric((version,), part)
        yield share
        stale = self._service.live.stale_s
        yield _gauge("safecb_codebook_stale_seconds", "Seconds since the store was last followed.", stale)
        refused = self._service.live.last_error is not None
        yield _gauge("safecb_codebook_refused", "Whether the store's active version cannot be drawn.", float(refused))

    def _canary(self) -> Iterable[Metric]:
        e = GaugeMetricFamily("safecb_canary_evidence", "e-value against a version in a split.", labels=("codebook",))
        for version, seen in self._service.guard.evidence().items():
            e.add_metric((version,), seen.e)
        yield e

    def _shadow(self) -> Iterable[Metric]:
        pairs = GaugeMetricFamily("safecb_shadow_pairs", "Pairs that a shadow comparison has.", labels=("codebook",))
        names = ("measure", "kind")
        e = GaugeMetricFamily("safecb_shadow_evidence", "e-values of a shadow comparison.", labels=names)
        shadow = self._service.live.active.shadow
        if shadow and (trial := self._service.journal.get(shadow["job"]).progress.get("trial")):
            pairs.add_metric((shadow["version"],), trial["pairs"])
            for measure, counts in trial["measures"].items():
                e.add_metric((measure, "worse"), counts["e_worse"])
                e.add_metric((measure, "within"), counts["e_within"])
        yield from (pairs, e)

    def _traffic(self) -> Iterable[Metric]:
        traffic = self._service.traffic.report()
        yield _gauge("safecb_live_traffic_alert", "Whether the alert on live traffic is raised.", float(traffic.alert))
        share = self._service.settings.judge_share
        yield _gauge("safecb_judged_share", "Share of the images that are judged as they are drawn.", share)
        total = LIMIT if traffic.cusum.alert else traffic.cusum.sum
        yield _gauge("safecb_live_traffic_cusum", "Evidence for an alert, which is raised at 11.", total)

    def _job(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("safecb_job", "The unfinished improve job: 1.", labels=("status", "phase"))
        done = GaugeMetricFamily("safecb_job_images_done", "Images of its plan that the job is past.")
        planned = GaugeMetricFamily("safecb_job_images_planned", "Images of its plan.")
        record = self._service.journal.running()
        if record is not None:
            running.add_metric((record.status, str(record.progress.get("phase", ""))), 1)
            if record.plan is not None:
                done.add_metric((), record.plan["images_done"])
                planned.add_metric((), record.plan["images_planned"])
        yield from (running, done, planned)

    def _redis(self) -> Iterable[Metric]:
        state = self._service.queue.state
        yield _gauge("safecb_redis_up", "Whether Redis takes jobs.", float(state.redis == "ok"))
        yield _gauge(
            "safecb_worker_heard", "Whether a worker has been heard of lately.", float(state.worker.state == "heard")
        )
        silence = datetime.now(UTC) - datetime.fromisoformat(state.worker.since)
        yield _gauge("safecb_worker_silence_seconds", "Seconds since a worker was heard of.", silence.total_seconds())

    def _storage(self) -> Iterable[Metric]:
        states = self._service.storage.states
        sound = GaugeMetricFamily("safecb_storage_up", "Whether a folder can be written.", labels=("place",))
        for place, state in states.items():
            sound.add_metric((place,), float(state == "ok"))
        yield sound


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)
