"""An OTLP/HTTP collector in a thread, and what tests ask of the spans that came."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span as the collector got it; ids are in hexadecimal, times in Unix seconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    kind: str
    began_s: float
    ended_s: float
    failed: bool
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()


@dataclass
class Collector:
    """Listens while the block runs.

    Attributes:
        spans: All that came.
        headers: Of the last export.
        bodies: Of all exports, as they came.
    """

    spans: list[Seen] = field(default_factory=list[Seen])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    bodies: list[bytes] = field(default_factory=list[bytes])

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                collector.headers = {name.lower(): value for name, value in self.headers.items()}
                collector.bodies.append(body)
                collector.spans += read_spans(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def one(self, name: str) -> Seen:
        """The only span of this name."""
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, [span.name for span in self.spans]
        return found[0]

    def below(self, parent: Seen) -> dict[str, Seen]:
        """Its children by name."""
        return {span.name: span for span in self.spans if span.parent_id == parent.span_id}


def read_spans(body: bytes) -> list[Seen]:
    """The spans of one export."""
    request = ExportTraceServiceRequest.FromString(body)
    found: list[Seen] = []
    for resource in request.resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            assert scope.scope.name == "sixfold"
            for span in scope.spans:
                found.append(
                    Seen(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        service=service,
                        kind=type(span).SpanKind.Name(span.kind),
                        began_s=span.start_time_unix_nano / 1e9,
                        ended_s=span.end_time_unix_nano / 1e9,
                        failed=span.status.code == 2,
                        attributes=_values(span.attributes),
                        events=tuple((event.name, _values(event.attributes)) for event in span.events),
                    )
                )
    return found


def _values(attributes: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(each) for each in value.array_value.values]
        return getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in attributes}
