"""What became of one request, for its line in the access log and for its trace; made only where either is wanted."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Send

from sixfold.core.messages import Finished, Timing

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import RequestTrace

ACCESS_LOG = "sixfold.access"
"""Name of the logger of access lines."""

_access_log = logging.getLogger(ACCESS_LOG)
_MAX_CONTENT_BYTES = 16 * 1024


class RequestRecord:
    """One HTTP request or WebSocket. Written by its own tasks in the event loop, ended once by whoever made it.

    Args:
        request_id: What the client sees.
        arrived_s: ``time.monotonic()`` at which its headers were there.
        trace: Its trace, if it is sampled.
        logs_access: Whether it gets a line in the access log.

    Attributes:
        model: The registry's name of its model, once that is known.
        replica: Which of the model's replicas took its last piece of work.
        operation: What it wants of the model.
        tenant: Whose key it carries.
        error: What kind of error it was answered with.
        received_s: When its body was there.
        first_byte_s: When its answer began.
        send_wait_s: How long its client let us wait while it was sent.
    """

    __slots__ = (
        "_arrived_s",
        "_logs_access",
        "_request_id",
        "error",
        "first_byte_s",
        "model",
        "operation",
        "received_s",
        "replica",
        "send_wait_s",
        "tenant",
        "timing",
        "trace",
        "usage",
    )

    def __init__(self, request_id: str, arrived_s: float, *, trace: RequestTrace | None, logs_access: bool) -> None:
        self._request_id = request_id
        self._arrived_s = arrived_s
        self._logs_access = logs_access
        self.trace = trace
        self.model: str | None = None
        self.replica: int | str | None = None
        self.operation: str | None = None
        self.tenant: str | None = None
        self.error: str | None = None
        self.timing: Timing | None = None
        self.usage: dict[str, int] = {}
        self.received_s: float | None = None
        self.first_byte_s: float | None = None
        self.send_wait_s = 0.0

    @property
    def trace_id(self) -> str | None:
        """Of its trace, for lines of the log and for the worker; None if there is none."""
        return None if self.trace is None else self.trace.trace_id

    def found(self, model: str, operation: str) -> None:
        """It named a model that is there."""
        self.model, self.operation = model, operation

    def finished(self, event: Finished[Any]) -> None:
        """Work of it was done."""
        self.timing = event.timing
        for name, count in event.usage.counts.items():
            self.usage[name] = self.usage.get(name, 0) + count

    def content(self, body: bytes) -> None:
        """Its body was read. Kept in the trace, and only where the operator wants that."""
        if self.trace is not None and self.trace.records_content:
            text = body[:_MAX_CONTENT_BYTES].decode("utf-8", "replace")
            self.trace.span.set_attribute("sixfold.request.body", text)

    def timed(self, receive: Receive) -> Receive:
        """The same channel, noting when the body was there."""

        async def receive_timed() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                self.received_s = monotonic()
            return message

        return receive_timed

    async def send(self, send: Send, message: Message) -> None:
        """Sends a part of its answer, noting when that began and how long the client let it wait."""
        began_s = monotonic()
        if self.first_byte_s is None:
            self.first_byte_s = began_s
        await send(message)
        self.send_wait_s += monotonic() - began_s

    def end(self, method: str, route: str, status: int) -> None:
        """It was answered, or its client has left (499)."""
        ended_s = monotonic()
        if self.trace is not None:
            self._end_trace(self.trace, method, route, status, ended_s)
        if self._logs_access:
            self._log(method, route, status, ended_s)

    def _end_trace(self, trace: RequestTrace, method: str, route: str, status: int, ended_s: float) -> None:
        span = trace.span
        span.update_name(f"{method} {route}")
        attributes: dict[str, str | int | None] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "sixfold.request_id": self._request_id,
            "sixfold.tenant": self.tenant,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if self.received_s is not None:
            trace.add("receive", self._arrived_s, self.received_s)
        if self.first_byte_s is not None:
            trace.add("send", self.first_byte_s, ended_s, attributes={"sixfold.send_wait_s": self.send_wait_s})
        failed = status >= 500 or status == 499
        trace.close(span, ended_s, error=(self.error or str(status)) if failed else None)

    def _log(self, method: str, route: str, status: int, ended_s: float) -> None:
        timing, duration_s = self.timing, ended_s - self._arrived_s
        extra: dict[str, object] = {
            "request_id": self._request_id,
            "trace_id": self.trace_id,
            "model": self.model,
            "replica": self.replica,
            "operation": self.operation,
            "tenant": self.tenant,
            "method": method,
            "route": route,
            "status": status,
            "error": self.error,
            "duration_s": duration_s,
            "first_byte_s": None if self.first_byte_s is None else self.first_byte_s - self._arrived_s,
            "receive_s": None if self.received_s is None else self.received_s - self._arrived_s,
            "usage": self.usage or None,
        }
        if timing is not None:
            extra |= {"prepare_s": timing.prepare_s, "queue_s": timing.queue_s, "inference_s": timing.inference_s}
        if self.send_wait_s:
            extra["send_wait_s"] = self.send_wait_s
        _access_log.info(
            "%s %s %d in %.3f s, request %s, model %s",
            *(method, route, status, duration_s, self._request_id, self.model or "-"),
            extra=extra,
        )
