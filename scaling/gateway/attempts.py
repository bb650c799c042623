"""Gets a request its answer's first bytes: tries a replica, then others, and asks a second one when the first is late."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType

from sixfold.core.errors import REFUSED, WOULD_BE_LATE, DeadlineExceeded, NotReady, RequestError, WorkerDied
from sixfold.scaling.gateway.budgets import HedgeClock, RetryBudget
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.settings import RetrySettings
from sixfold.scaling.gateway.splitter import PromptSplitter
from sixfold.scaling.gateway.try_span import TrySpan
from sixfold.scaling.gateway.upstream import Outgoing, ReplicaFailed, Upstream
from sixfold.scaling.gateway.work import Attempt, Work
from sixfold.scaling.rollout.split import Splitter
from sixfold.scaling.route.policy import Decision
from sixfold.scaling.route.router import ReplicaFacts, Router

_LOG = logging.getLogger(__name__)

_BUSY = frozenset((429, 502, 503))
"""Answers after which another replica may do better; a 500 says so itself (``x-should-retry``), a 504 is too late."""
_BACKOFF_S = 0.025
_DEADLINE_GRACE_S = 0.5
"""The replica keeps the deadline itself; the gateway does when it is this late."""


class Attempts:
    """All tries of one gateway. Used in one event loop.

    Args:
        fleet: Who is there.
        geography: Says which site's turn it is.
        router: Chooses and reserves.
        upstream: Connections.
        settings: How often to try.
        budget: Of retries.
        metrics: Counted on the way.
        clock: Monotonic seconds.
        hurry: Called when a replica seems to be gone.
        splitter: Has prompts computed elsewhere; None to have none.
        shares: By the names of models that are being rolled out, which revision gets a request.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        geography: Geography,
        router: Router,
        upstream: Upstream,
        settings: RetrySettings,
        budget: RetryBudget,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        hurry: Callable[[], None],
        splitter: PromptSplitter | None = None,
        shares: Mapping[str, Splitter] = MappingProxyType({}),
    ) -> None:
        self._shares = shares
        self._splitter = splitter
        self._fleet = fleet
        self._geography = geography
        self._router = router
        self._upstream = upstream
        self._settings = settings
        self._budget = budget
        self._metrics = metrics
        self._clock = clock
        self._hurry = hurry
        self._jitter = Random()

    async def first_answer(self, work: Work, hedge: HedgeClock | None = None, *, is_retry: bool = False) -> Attempt:
        """Returns an answer whose first bytes are here: a good one, or the last bad one when no more tries are left.

        Args:
            work: What is asked.
            hedge: Says when a second replica is asked beside the first; None for never.
            is_retry: Whether the first try is a retry already, which waits for its place in the budget. One request never
                holds two places: those that wait for a second one would wait for each other.

        Raises:
            NotReady: No replica takes requests of this model.
            WorkerDied: Every try lost its replica.
            DeadlineExceeded: There was none in time.
        """
        timeout_s = None if work.deadline_s is None else work.deadline_s - self._clock() + _DEADLINE_GRACE_S
        retrying = False
        tried: list[str] = []
        try:
            async with asyncio.timeout(timeout_s):
                if is_retry:
                    await self._budget.take()
                    retrying = True
                while True:
                    reason = ""
                    try:
                        attempt = await self._try_hedged(work, tried, hedge)
                    except ReplicaFailed as failure:
                        self._geography.lost(work.journey)
                        self._leave_site(work, tried)
                        if len(tried) >= self._settings.max_attempts or (failure.begun and not work.replayable):
                            raise _lost(failure, work) from failure
                        if not retrying:  # what a dead replica left comes back in waves, and is not refused
                            await self._budget.take()
                            retrying = True
                        reason = "connection"
                    else:
                        if not self._may_do_better(attempt, work, tried):
                            return attempt
                        if not retrying:
                            if not self._budget.try_take():
                                return attempt
                            retrying = True
                        answer = attempt.answer
                        reason = str(answer.status)
                        attempt.close(failed=True)
                        if (
                            answer.header(REFUSED) != WOULD_BE_LATE
                        ):  # that is the request's own hurry: others find room there
                            self._leave_site(work, tried)
                    self._metrics.retries.labels(work.model or "", reason).inc()
        except TimeoutError:
            raise DeadlineExceeded("The request's deadline passed before it was done.") from None
        finally:
            if retrying:
                self._budget.give_back()

    async def _try_hedged(self, work: Work, tried: list[str], hedge: HedgeClock | None) -> Attempt:
        late_s = None if hedge is None or not work.replayable or tried else hedge.late_after_s()
        if late_s is None or hedge is None:
            return await self._try(work, tried)
        first = asyncio.create_task(self._try(work, tried))
        tasks = [first]
        winner: Attempt | None = None
        try:
            await asyncio.wait(tasks, timeout=late_s)
            if not first.done() and self._others(work, tried) and hedge.try_take():
                tasks.append(asyncio.create_task(self._try(work, tried)))
            winner = await self._race(tasks, work)
            return winner
        finally:
            # Nothing is awaited here: a cancellation at that moment would lose the winner, and a loser that is slow to
            # stop would hold it up.
            for task in tasks:
                task.add_done_callback(partial(_close_loser, winner))
                task.cancel()

    async def _race(self, tasks: Sequence[asyncio.Task[Attempt]], work: Work) -> Attempt:
        """The first task that has an answer; the last failure if none has."""
        pending = set(tasks)
        while pending:
            _done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is None:
                    if len(tasks) > 1:
                        outcome = "lost" if task is tasks[0] else "won"
                        self._metrics.hedges.labels(work.model or "", outcome).inc()
                    return task.result()
        return tasks[-1].result()  # raises its failure

    async def _try(self, work: Work, tried: list[str]) -> Attempt:
        replica, decision = self._select(work, tried)
        if tried.count(replica.record.replica_id) > 0:  # nobody else is left
            await asyncio.sleep(_BACKOFF_S * 2 ** len(tried) * self._jitter.uniform(0.5, 1.0))
        replica_id = replica.record.replica_id
        tried.append(replica_id)
        span = None if work.trace is None else TrySpan(work.trace, decision, number=len(tried))
        try:
            outgoing = work.outgoing
            if work.tenant is not None and replica.tells_tenants:
                outgoing = outgoing.with_header("x-tenant", work.tenant)
            if self._splitter is not None and work.replayable:
                outgoing = await self._splitter.outgoing_of(work.request_id, work.shape, outgoing, decision)
            if span is not None:
                outgoing = span.below(outgoing)
            self._fleet.sent(replica_id, decision.number, model=work.model or "")
            answer = await self._upstream.send(replica.record.url, self._with_deadline(work, outgoing))
            self._fleet.answered(replica_id, decision.number)
        except BaseException as failure:
            self._router.fail(decision)
            if span is not None:
                span.end(error=type(failure).__name__)
            if isinstance(failure, ReplicaFailed):
                self._on_lost(replica, failure, work)
            raise
        finally:
            self._fleet.given_up(replica_id, decision.number)
        if self._fleet.judge(replica, answer):
            self._metrics.lost.labels(replica_id, str(answer.status)).inc()
        return Attempt(answer, decision, self._router, span)

    def _select(self, work: Work, tried: Sequence[str]) -> tuple[Replica, Decision]:
        candidates: Sequence[ReplicaFacts] = self._others(work, tried) or self._others(work, ())
        if not candidates:
            if work.only is not None:
                raise NotReady(
                    "The server that keeps what this request is about is not up right now. Try again in a moment.",
                    code="holder_not_up",
                    retry_after_s=2.0,
                )
            raise self._geography.no_replica(self._fleet.names_of(work.model))
        if work.only is None:
            candidates = self._geography.prefer(work.journey, work.shape.session, candidates)
        shared = self._shares.get(work.shape.model)
        if shared is not None:
            candidates = shared.narrow(candidates, session=work.shape.session, is_retry=work.broke or bool(tried))
        decision = self._router.select(work.shape, candidates, self._clock())
        replica = self._fleet.get(decision.replica_id)
        assert replica is not None  # nothing was awaited since it was listed
        model = work.model or ""
        self._metrics.routed.labels(model, decision.replica_id, decision.reason).inc()
        if work.journey.site_id:
            self._metrics.sent_to_sites.labels(model, work.journey.site_id).inc()
        self._metrics.prompt_units.labels(model).inc(work.shape.prompt_units)
        self._metrics.cached_units.labels(model).inc(work.shape.prompt_units * decision.cached)
        return replica, decision

    def _others(self, work: Work, tried: Sequence[str]) -> list[ReplicaFacts]:
        return self._fleet.available(work.model, tried, only=work.only)

    def _leave_site(self, work: Work, tried: Sequence[str]) -> None:
        """A try failed: where nobody else at its site could take it, the site comes last for a while."""
        if work.only is None and not any(each.site == work.journey.site_id for each in self._others(work, tried)):
            self._geography.refused(work.journey)

    def _may_do_better(self, attempt: Attempt, work: Work, tried: Sequence[str]) -> bool:
        answer = attempt.answer
        if len(tried) >= self._settings.max_attempts or not work.replayable:
            return False
        advice = answer.header("x-should-retry")
        wanted = answer.status in _BUSY if advice is None else advice == "true" and answer.status in (*_BUSY, 500)
        return wanted and bool(self._others(work, tried))

    def _with_deadline(self, work: Work, outgoing: Outgoing) -> Outgoing:
        if work.deadline_s is None:
            return outgoing
        left_s = max(0.001, work.deadline_s - self._clock())
        return outgoing.with_header("x-request-timeout-s", f"{left_s:.3f}")

    def _on_lost(self, replica: Replica, failure: ReplicaFailed, work: Work) -> None:
        replica_id = replica.record.replica_id
        _LOG.warning("request %s: replica %s failed: %s", work.request_id, replica_id, failure)
        self._metrics.lost.labels(replica_id, "begun" if failure.begun else "connect").inc()
        self._fleet.failed(replica_id)
        if not failure.begun:
            self._fleet.unreachable(replica)
        self._hurry()


def _close_loser(winner: Attempt | None, task: asyncio.Task[Attempt]) -> None:
    if not task.cancelled() and task.exception() is None and task.result() is not winner:
        task.result().close(failed=True)


def _lost(failure: ReplicaFailed, work: Work) -> RequestError:
    if not failure.begun:
        return NotReady("No server of this model can be reached right now. Try again in a moment.", retry_after_s=2.0)
    hint = "Try again." if work.replayable else "It may have been done; look before you try again."
    return WorkerDied(f"The server that worked on this request was lost. {hint}", retry_after_s=1.0)
