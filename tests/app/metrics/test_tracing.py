"""OpenTelemetry: what a server process sends to a collector, and what it never sends."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.supervised import Supervised
from tests.support.tiny import build_tiny

PROMPT = "a secret kite"


class Collector:
    """An OTLP collector on loopback: keeps what it is sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[tuple[str, bytes]] = []

    def spans(self) -> list[Span]:
        traces = [ExportTraceServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/traces"]
        return [
            s for trace in traces for part in trace.resource_spans for scope in part.scope_spans for s in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            packed = self.headers.get("content-encoding") == "gzip"
            collector.bodies.append((self.path, gzip.decompress(body) if packed else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: pytest's output stays readable."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()


def test_spans_carry_request_ids_and_neither_prompts_nor_signatures(tmp_path: Path, runs: list[Supervised]) -> None:
    model = build_tiny(tmp_path / "model")
    with collecting() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "SAFECB_LOG": "json"}
        runs.append(run := Supervised(tmp_path / "home", model, **environ))
        with run.wait_ready() as http:
            drawn = http.post("/generate", json={"prompt": PROMPT}, headers={"X-Request-Id": "mine-1"})
            wish = {"prompt": PROMPT, "response_format": "url"}
            link = http.post("/v1/images/generations", json=wish).json()["data"][0]["url"]
            assert http.get(link).status_code == 200
            http.get("/health/ready")
        assert run.end(signal.SIGTERM) == 0
    spans = {span.name: span for span in collector.spans()}
    attributes = {a.key: a.value.string_value for a in spans["POST /generate"].attributes}
    assert attributes["safecb.request_id"] == "mine-1" == drawn.headers["x-request-id"]
    assert "GET /images/{id}" in spans and not any("/health" in name for name in spans)
    sent = b"".join(body for _, body in collector.bodies)
    signature = httpx2.URL(link).params["sig"]
    assert {path for path, _ in collector.bodies} == {"/v1/traces", "/v1/metrics"}
    assert b"secret kite" not in sent and signature.encode() not in sent and b"http.server.request.duration" in sent


def test_json_lines_name_the_trace_that_they_belong_to() -> None:
    from logging import LogRecord

    from opentelemetry.sdk.trace import TracerProvider

    from core.logs import _json

    record = LogRecord("app", 20, "", 0, "drawn", (), None)
    with TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_as_current_span("one") as span:
        inside = json.loads(_json().format(record))
    context = span.get_span_context()
    assert (inside["trace_id"], inside["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert "trace_id" not in json.loads(_json().format(record))
