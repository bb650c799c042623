"""Sends a prompt to a replica that only computes, where that pays, and gives the answering replica the way to its blocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.disagg.bodies import can_split, decode_body, handle_of, prefill_body, read_object
from sixfold.scaling.disagg.planner import PromptShape, ReplicaLoad, SplitDecision, decide_split
from sixfold.scaling.disagg.speed import PrefillSpeed
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.settings import DisaggregationSettings
from sixfold.scaling.gateway.upstream import Answer, AnswerTorn, Outgoing, ReplicaFailed, Upstream
from sixfold.scaling.route.policy import Decision, RequestShape
from sixfold.scaling.route.router import Router

_LOG = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 1024 * 1024
_BLEND = 0.05
"""Of the share of split prompts that is told: a memory of about twenty."""
_WORTH_TELLING = 0.25


class PromptSplitter:
    """Decides for each try of a request. Used in one event loop.

    A prompt that can't be computed elsewhere, for whatever reason, is computed where the answer is written: no failure here is
    ever a client's.

    Args:
        settings: Speeds and bounds.
        fleet: Who is there.
        decode_router: Reserves at those who answer.
        prefill_router: Reserves at those who compute.
        upstream: Connections.
        metrics: Counted on the way.
        decisions: Told where the share of split prompts has got to.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: DisaggregationSettings,
        *,
        fleet: Fleet,
        decode_router: Router,
        prefill_router: Router,
        upstream: Upstream,
        metrics: GatewayMetrics,
        decisions: DecisionLog,
        clock: Callable[[], float],
    ) -> None:
        self._decisions = decisions
        self._split_share = 0.0
        self._speeds: dict[str, PrefillSpeed] = {}  # of models that prefill replicas serve
        self._settings = settings
        self._costs = settings.costs
        self._fleet = fleet
        self._decode_router = decode_router
        self._prefill_router = prefill_router
        self._upstream = upstream
        self._metrics = metrics
        self._clock = clock

    async def outgoing_of(self, request_id: str, shape: RequestShape, outgoing: Outgoing, decode: Decision) -> Outgoing:
        """What to send to the replica that answers, after the prompt was computed elsewhere if that pays.

        Args:
            request_id: For logs.
            shape: Of the request.
            outgoing: What would be sent to a replica that does it all.
            decode: The reservation where the answer will be written.
        """
        path = outgoing.target.partition("?")[0]
        candidates = self._fleet.prefillers(shape.model)
        if not candidates or shape.prompt_units < self._settings.min_prompt_tokens:
            return outgoing
        body = read_object(outgoing.body)
        if not can_split(path, body):
            return outgoing
        prefill = self._prefill_router.select(replace(shape, output_units=0), candidates, self._clock())
        try:
            speed = self._speed(shape.model)
            verdict = self._decide(shape, decode, prefill, speed.tokens_per_s(self._clock()))
            _LOG.debug("request %s: %s", request_id, verdict.reason)
            self._tell(shape.model, verdict)
            if not verdict.split:
                self._count(shape, "stayed")
                return outgoing
            num_tokens, began_s = self._prefill_router.load(prefill.replica_id).prefill_units, self._clock()
            handle = await self._computed(request_id, shape, replace_body(outgoing, prefill_body(body)), prefill)
            if handle is not None:
                ended_s = self._clock()
                speed.observe(num_tokens, ended_s - began_s - self._costs.overhead_s, ended_s)
        finally:
            self._prefill_router.complete(prefill)
        if handle is None:
            self._count(shape, "failed")
            return outgoing
        self._count(shape, "split")
        self._decode_router.started(decode)  # there is nothing left to compute before the first token
        return replace_body(outgoing, decode_body(body, handle))

    def _speed(self, model: str) -> PrefillSpeed:
        found = self._speeds.get(model)
        if found is None:
            declared = self._settings.prefill_tokens_per_s
            found = self._speeds[model] = PrefillSpeed(declared, model=model, decisions=self._decisions)
        return found

    def _decide(self, shape: RequestShape, decode: Decision, prefill: Decision, rate: float) -> SplitDecision:
        here, there = self._decode_router.load(decode.replica_id), self._prefill_router.load(prefill.replica_id)
        return decide_split(
            PromptShape(
                num_tokens=shape.prompt_units,
                cached_at_decode=int(decode.cached * shape.prompt_units),
                cached_at_prefill=int(prefill.cached * shape.prompt_units),
            ),
            # Without what this request has reserved itself.
            ReplicaLoad(
                prefill_tokens_per_s=rate,
                queued_tokens=max(here.prefill_units - decode.prefill_units, 0.0),
                num_streams=here.num_running - 1,
            ),
            ReplicaLoad(prefill_tokens_per_s=rate, queued_tokens=max(there.prefill_units - prefill.prefill_units, 0.0)),
            self._costs,
        )

    async def _computed(
        self, request_id: str, shape: RequestShape, outgoing: Outgoing, prefill: Decision
    ) -> Mapping[str, Any] | None:
        """The handle of the computed prompt; None if there is none."""
        replica = self._fleet.get(prefill.replica_id)
        assert replica is not None  # nothing was awaited since it was listed
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer, body = await self._ask(replica.record.url, outgoing)
        except ReplicaFailed as failure:
            self._fleet.failed(prefill.replica_id)
            if not failure.begun:
                self._fleet.unreachable(replica)
            reason = str(failure)
        except (AnswerTorn, TimeoutError) as failure:
            self._fleet.failed(prefill.replica_id)
            reason = str(failure) or "it took too long"
        else:
            self._fleet.judge(replica, answer)
            handle = handle_of(read_object(body)) if answer.status == 200 else None
            if handle is not None:
                return handle
            reason = f"it answered {answer.status} without a handle"
        _LOG.warning(
            "request %s: its prompt of about %d tokens is computed where it is answered; prefill replica %s: %s",
            *(request_id, shape.prompt_units, prefill.replica_id, reason),
        )
        return None

    async def _ask(self, url: str, outgoing: Outgoing) -> tuple[Answer, bytes]:
        """The answer, closed, and all of its body."""
        with contextlib.closing(await self._upstream.send(url, outgoing)) as answer:
            body = answer.first
            async for chunk in answer.rest():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise AnswerTorn("it answers more than one token takes")
            return answer, body

    def _tell(self, model: str, verdict: SplitDecision) -> None:
        self._split_share += _BLEND * (float(verdict.split) - self._split_share)
        self._decisions.moved(
            "split_share",
            round(self._split_share, 2),
            lambda: f"the last prompt: {verdict.reason}",
            objective=f"least waiting of all; a split saves {self._settings.min_gain:.0%} at least",
            least=_WORTH_TELLING,
            source=model,
        )

    def _count(self, shape: RequestShape, outcome: str) -> None:
        self._metrics.splits.labels(shape.model, outcome).inc()


def replace_body(outgoing: Outgoing, body: object) -> Outgoing:
    """The same request with another JSON body."""
    headers: Sequence[tuple[str, str]] = [
        (name, value) for name, value in outgoing.headers if name.lower() != "content-length"
    ]
    return Outgoing(method=outgoing.method, target=outgoing.target, headers=headers, body=msgspec.json.encode(body))
