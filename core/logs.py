"""Logging of a process: lines of text, or JSON objects with the ids of the request or job that they are about.

Knows logging and structlog. Knows nothing of what is logged; prompts never are.
"""

from __future__ import annotations

import logging
from typing import TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

JSON = "json"
FORMS = ("text", JSON)
_TEXT = logging.Formatter("%(asctime)s %(name)s %(message)s")


def _add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the ids of the current OpenTelemetry span, if there is one, in the W3C's hexadecimal form."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    _add_trace,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(form: str) -> None:
    """Log INFO and above of all libraries to stderr in one of FORMS; a later call replaces an earlier one.

    As with logging.basicConfig, whoever has set up the root logger before keeps it as it is.
    """
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, _Own)]:
        root.removeHandler(earlier)
    if not root.handlers:
        handler = _Own()
        handler.setFormatter(_json() if form == JSON else _TEXT)
        root.addHandler(handler)
        root.setLevel(logging.INFO)


class _Own(logging.StreamHandler[TextIO]):
    """The handler that `configure` has made."""


def about(**ids: str) -> None:
    """Name what the log lines of this thread or task are about, from now on: request_id, job_id."""
    structlog.contextvars.bind_contextvars(**ids)


def _json() -> logging.Formatter:
    finish: tuple[Processor, ...] = (
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    )
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=finish)
