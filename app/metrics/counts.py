"""Counters of one server: images by version and verdict, responses by route and status.

Knows prometheus_client. Knows nothing of how an image or a response comes about.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

from engine.image_result import ImageResult

SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 80)  # upper ends of the histogram of response times


# A second series a counter, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Counts:
    """Counters since the start of the server, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._images = Counter(
            "safecb_images",
            "Images drawn and answered, by codebook version and the model's own verdict: true, false or unjudged.",
            ("codebook", "unsafe"),
            registry=self.registry,
        )
        self._fired = Counter(
            "safecb_fired",
            "Images for which the router or probe of a version fired, by version and what became of them.",
            ("codebook", "outcome"),
            registry=self.registry,
        )
        self._bad_numbers = Counter(
            "safecb_bad_numbers",
            "Calls refused because an image came to NaN or infinity, by codebook version.",
            ("codebook",),
            registry=self.registry,
        )
        self._responses = Counter(
            "safecb_responses",
            "HTTP responses, by method, route and status; 429 and 503 are refusals.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "safecb_response_seconds",
            "Seconds until a response is complete, by route; without streams.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def drew(self, results: Sequence[ImageResult]) -> None:
        """Count finished images."""
        for result in results:
            verdict = "unjudged" if result.verdict is None else "true" if result.verdict.unsafe else "false"
            self._images.labels(result.request.codebook.version, verdict).inc()
            if outcome := _outcome(result):
                self._fired.labels(result.request.codebook.version, outcome).inc()

    def declined(self, version: str, images: int) -> None:
        """Count the images of a call that `version` refuses."""
        self._fired.labels(version, "refused").inc(images)

    def refused(self, version: str) -> None:
        """Count a call that is refused because an image under `version` came to NaN or infinity."""
        self._bad_numbers.labels(version).inc()

    def responded(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a response. seconds: until it was complete, None for a stream."""
        self._responses.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)


def _outcome(result: ImageResult) -> str | None:
    """What became of an image that fired; None for one that did not."""
    if result.redraws:
        return "redrawn"
    return "edited" if result.experts else "rewritten" if result.revised is not None else None
