"""OpenTelemetry of a server: FastAPI's own spans and histogram, exported where the standard OTEL_ variables say.

Knows which requests are traced. Knows no exporter: they come with the extra `otel`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig

PROBES = ("/health/", "/metrics", "/console/")


def telemetry(root_path: str) -> TelemetryConfig:
    """Return FastAPI's configuration for a server with this path prefix."""

    def is_probe(scope: MutableMapping[str, Any]) -> bool:
        """Whether a request is a probe, a scrape or a file of the console: many, and nobody's question."""
        path: str = scope["path"]
        return path.removeprefix(root_path).startswith(PROBES)

    # Records of exceptions stay off: their texts may hold what a caller wrote.
    return TelemetryConfig(auto_configure=True, logs=False, exclude=is_probe)
