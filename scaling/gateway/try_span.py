"""One try of a request at a replica, as its trace shows it: from the choice to the last byte, or to the failure."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from sixfold.scaling.gateway.upstream import Outgoing
from sixfold.scaling.route.policy import Decision

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import RequestTrace


class TrySpan:
    """What the replica does for it is put below it, so the time between both is the network's.

    Args:
        trace: Of the request.
        decision: Which replica, and why.
        number: Of the try, from 1.
    """

    def __init__(self, trace: RequestTrace, decision: Decision, *, number: int) -> None:
        self._trace = trace
        self._ended = False
        self._span = trace.open(
            f"try {decision.replica_id}",
            began_s=monotonic(),
            attributes={
                "sixfold.replica": decision.replica_id,
                "sixfold.routing.reason": decision.reason,
                "sixfold.routing.cached": float(decision.cached),
                "http.request.resend_count": number - 1,
            },
            calls_out=True,
        )

    def below(self, outgoing: Outgoing) -> Outgoing:
        """The same request, whose replica puts its own spans below this one."""
        own = self._trace.headers(self._span)
        kept = [(name, value) for name, value in outgoing.headers if name.lower() not in ("traceparent", "tracestate")]
        return replace(outgoing, headers=(*kept, *own.items()))

    def end(self, *, status: int | None = None, error: str | None = None) -> None:
        """The answer is over, or there was none. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            if status >= 400:
                error = error or str(status)
        self._trace.close(self._span, monotonic(), error=error)
