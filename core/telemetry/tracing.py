"""Traces of requests by OpenTelemetry: imported only where an endpoint is set.

Spans are made after the fact from times that are there anyway, and handed to a bounded queue that a thread of the SDK
empties: a collector that is slow or gone costs spans, never a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sixfold.core.telemetry.settings import TelemetrySettings

Attribute = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Attribute]

_TRACES = "/v1/traces"
_EXPORT_EVERY_MS = 2000.0


class RequestTrace:
    """The trace of one request in this process: its own span, and those that are put below it.

    Times are ``time.monotonic()``; they are placed on the calendar once, so that a step of the clock moves a trace and never
    tears it. Belongs to the request; not thread-safe.

    Args:
        tracer: Makes spans.
        span: Of the request.
        epoch_ns: Unix time minus monotonic time, when the request came.
        records_content: Whether the operator wants what clients sent in spans.
    """

    __slots__ = ("_epoch_ns", "_tracer", "records_content", "span")

    def __init__(self, tracer: Tracer, span: Span, epoch_ns: int, *, records_content: bool) -> None:
        self._tracer = tracer
        self._epoch_ns = epoch_ns
        self.span = span
        self.records_content = records_content

    @property
    def sampled(self) -> bool:
        """Whether anybody will see it; spans of one that is not sampled cost next to nothing and go nowhere."""
        return self.span.is_recording()

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.span.get_span_context().trace_id:032x}"

    def headers(self, span: Span | None = None) -> dict[str, str]:
        """The W3C headers for who is asked next: below ``span``, or below the request's own."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span or self.span, Context()))
        return carrier

    def open(
        self,
        name: str,
        *,
        began_s: float,
        parent: Span | None = None,
        attributes: Attributes | None = None,
        calls_out: bool = False,
    ) -> Span:
        """Begins a span below ``parent`` (the request's own unless given); must be given to `close`."""
        return self._tracer.start_span(
            name,
            set_span_in_context(parent or self.span, Context()),
            SpanKind.CLIENT if calls_out else SpanKind.INTERNAL,
            attributes,
            start_time=self._ns(began_s),
        )

    def close(self, span: Span, ended_s: float, *, error: str | None = None) -> None:
        """Ends a span; ``error`` is what kind of failure ended it."""
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._ns(ended_s))

    def add(
        self,
        name: str,
        began_s: float,
        ended_s: float,
        *,
        parent: Span | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """A span whose times are known."""
        span = self.open(name, began_s=began_s, parent=parent, attributes=attributes)
        self.close(span, max(began_s, ended_s))
        return span

    def add_event(self, span: Span, name: str, at_s: float, attributes: Attributes | None = None) -> None:
        """A moment of a span."""
        span.add_event(name, attributes, self._ns(at_s))

    def _ns(self, at_s: float) -> int:
        return self._epoch_ns + int(at_s * 1e9)


class Tracing:
    """Begins the traces of one process.

    Args:
        provider: Of spans.
        records_content: See `TelemetrySettings.record_content`.
        exporter: Told to give up when closing takes too long; None for providers that never wait.
        close_timeout_s: How long that is.
    """

    def __init__(
        self,
        provider: TracerProvider,
        *,
        records_content: bool = False,
        exporter: OTLPSpanExporter | None = None,
        close_timeout_s: float = 5.0,
    ) -> None:
        self._provider = provider
        self._records_content = records_content
        self._exporter = exporter
        self._close_timeout_s = close_timeout_s
        self._tracer = provider.get_tracer("sixfold", version("sixfold"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str], *, name: str, arrived_s: float) -> RequestTrace:
        """The trace of a request that has just come, continuing its caller's.

        Args:
            headers: Its own, with lower-case names.
            name: Of its span, until more is known.
            arrived_s: ``time.monotonic()`` at which it came.
        """
        caller = self._propagator.extract(headers, Context()) if "traceparent" in headers else Context()
        epoch_ns = time.time_ns() - time.monotonic_ns()
        start_ns = epoch_ns + int(arrived_s * 1e9)
        span = self._tracer.start_span(name, caller, SpanKind.SERVER, start_time=start_ns)
        return RequestTrace(self._tracer, span, epoch_ns, records_content=self._records_content)

    def flush(self) -> None:
        """Sends what waits, and returns when it was sent or given up."""
        self._provider.force_flush()

    def close(self) -> None:
        """Sends what waits, for as long as the settings allow; what is left then is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="telemetry-close", daemon=True)
        closing.start()
        closing.join(self._close_timeout_s)
        if closing.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # theirs


def open_otlp(settings: TelemetrySettings, *, processor: SpanProcessor | None = None) -> Tracing:
    """Tracing that sends to a collector.

    Args:
        settings: With an endpoint.
        processor: Takes spans in place of the one that sends them; for tests and embedding programs.
    """
    assert settings.endpoint is not None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource.create({"service.name": settings.service_name, "service.version": version("sixfold")}),
        shutdown_on_exit=False,  # `Tracing.close` does it, and does not wait for ever
    )
    exporter: OTLPSpanExporter | None = None
    if processor is None:
        base = settings.endpoint.rstrip("/")
        exporter = OTLPSpanExporter(
            endpoint=base if base.endswith(_TRACES) else base + _TRACES,
            headers=dict(settings.headers),
            timeout=settings.export_timeout_s,
        )
        processor = BatchSpanProcessor(
            exporter, max_queue_size=settings.max_queue_spans, schedule_delay_millis=_EXPORT_EVERY_MS
        )
    provider.add_span_processor(processor)
    return Tracing(
        provider,
        records_content=settings.record_content,
        exporter=exporter,
        close_timeout_s=settings.export_timeout_s,
    )
