"""A request that was admitted, and an answer to it that has begun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sixfold.scaling.gateway.geography import Journey
from sixfold.scaling.gateway.try_span import TrySpan
from sixfold.scaling.gateway.upstream import Answer, Outgoing
from sixfold.scaling.route.policy import Decision, RequestShape
from sixfold.scaling.route.router import Router

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request that was admitted.

    Attributes:
        request_id: For logs.
        model: As the client named it; None for any replica's.
        shape: For routing.
        journey: Where it comes from, and which site has it.
        outgoing: What is sent; the deadline's header is added for each try.
        replayable: Whether it may be tried again after a replica has begun.
        deadline_s: Monotonic seconds; None for none.
        only: Ids of the replicas that may do it; None for any.
        tenant: For whom it is, which replicas are told that keep tenants apart; None where the client's key says it.
        broke: Whether an answer of it broke already, which keeps it from a revision on trial.
        trace: Where its tries are noted; None for nowhere.
    """

    request_id: str
    model: str | None
    shape: RequestShape
    journey: Journey
    outgoing: Outgoing
    replayable: bool
    deadline_s: float | None
    only: frozenset[str] | None = None
    tenant: str | None = None
    broke: bool = False
    trace: RequestTrace | None = None


class Attempt:
    """An answer that has begun, and the reservation that it needs. Must be closed, once or more."""

    def __init__(self, answer: Answer, decision: Decision, router: Router, span: TrySpan | None) -> None:
        self._span = span
        self.answer = answer
        self.decision = decision
        self._router = router
        router.started(decision)

    def close(self, *, failed: bool = False) -> None:
        """Gives the connection and the reservation back."""
        self.answer.close()
        if self._span is not None:
            self._span.end(status=self.answer.status, error="lost" if failed and self.answer.status < 400 else None)
        if failed:
            self._router.fail(self.decision)
        else:
            self._router.complete(self.decision)
