"""One request from its first byte to its last: read, admitted, tried, passed on, and put away whatever happens."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from sixfold.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    QueueFull,
    RequestCancelled,
    RequestError,
    WorkerDied,
)
from sixfold.core.serving.body import BodyStream
from sixfold.core.serving.error_responses import error_json, error_response
from sixfold.core.serving.form_reader import is_form
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.request_facts import read_headers, read_timeout_s
from sixfold.scaling.gateway.admission import Admission
from sixfold.scaling.gateway.attempts import Attempt, Attempts, Work
from sixfold.scaling.gateway.budgets import HedgeClock, RetryBudget
from sixfold.scaling.gateway.events import EventStream
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.inbound import Inbound, TokenIds, read_inbound, shape_of
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.owners import Owners
from sixfold.scaling.gateway.resume import Diverged, StreamRecord, is_resumable
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.gateway.upstream import Answer, AnswerTorn, Headers, Outgoing

_LOG = logging.getLogger(__name__)

_OF_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
_NOT_FORWARDED = _OF_CONNECTION | {
    "host",
    "content-length",
    "expect",
    "x-request-id",
    "x-request-timeout-s",
    "x-request-deadline",
}
_NOT_PASSED_BACK = _OF_CONNECTION | {"date", "server", "x-request-id"}
_EVERY_REPLICA = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/metrics"))
_DEADLINE_GRACE_S = 1.0
"""A replica ends its answer at the deadline itself; the gateway does when it is this late."""
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all requests of a gateway share."""

    settings: GatewaySettings
    fleet: Fleet
    attempts: Attempts
    budget: RetryBudget
    metrics: GatewayMetrics
    owners: Owners
    admission_of: Callable[[str], Admission]
    hedge_of: Callable[[str], HedgeClock]
    token_ids: TokenIds | None
    hurry: Callable[[], None]
    clock: Callable[[], float]


class Buffered:
    """Bytes of request bodies that are held, against their bound."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Counts bytes that came; give them back with a negative number.

        Raises:
            QueueFull: There is no room; nothing was counted.
        """
        if num_bytes > 0 and self.num_bytes + num_bytes > self._max_bytes:
            raise QueueFull("The gateway holds as many request bodies as it may. Try again later.", retry_after_s=1.0)
        self.num_bytes += num_bytes


class ProxiedRequest:
    """One request. Made, run and closed by one task.

    Args:
        parts: Shared with all others.
        buffered: Counts its body.
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's; adds the request's id.
        request_id: The client's or a new one.
        principal: Whose key it is.
        tenant: Whose fairness it counts in; of a gateway without keys, whoever the client's own key stands for.
    """

    def __init__(
        self,
        parts: Parts,
        buffered: Buffered,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        request_id: str,
        principal: Principal,
        tenant: str,
    ) -> None:
        self._parts = parts
        self._buffered = buffered
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._principal = principal
        self._tenant = tenant
        self._arrived_s = parts.clock()
        self._headers = read_headers(scope)
        self._num_held = 0
        self._label = ""  # the model's name in metrics: only of models that exist
        self._reason: RequestError | None = None
        self._task: asyncio.Task[object] | None = None
        self._started = False
        self._is_sse = False
        self._resumes = False

    def abort(self, reason: RequestError) -> None:
        """Ends it now; its client is told ``reason``."""
        self._reason = reason
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Does it all. Never raises for what can be told to the client."""
        self._task = asyncio.current_task()
        watch: asyncio.Task[None] | None = None
        try:
            inbound = await self._read()
            watch = asyncio.create_task(self._watch_for_disconnect())
            await self._admit_and_answer(inbound)
        except RequestError as error:
            await self._tell(error)
        except asyncio.CancelledError:
            if self._reason is None or self._task is None:
                raise
            self._task.uncancel()
            await self._tell(self._reason)
        finally:
            if watch is not None:
                watch.cancel()
            self._buffered.take(-self._num_held)

    async def _read(self) -> Inbound:
        scope, server = self._scope, self._parts.settings.server
        path: str = scope["path"]
        if path in _EVERY_REPLICA:
            raise NotFound(f"{path} concerns single servers. Send it to each of them, not to the gateway.")
        form = is_form(self._headers)
        stream = BodyStream(
            self._receive,
            self._headers,
            max_bytes=server.max_upload_bytes if form else server.max_body_bytes,
            timeout_s=server.body_timeout_s,
            **({} if form else {"pace_bytes": None}),
        )
        pieces: list[bytes] = []
        async for piece in stream:
            self._buffered.take(len(piece))
            self._num_held += len(piece)
            pieces.append(piece)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        raw: bytes = scope.get("raw_path") or path.encode()
        return read_inbound(
            scope["method"], raw.partition(b"?")[0].decode("latin-1"), scope["query_string"], self._headers, body
        )

    async def _admit_and_answer(self, inbound: Inbound) -> None:
        parts, principal, model = self._parts, self._principal, inbound.model
        if model is not None:
            if not parts.fleet.knows(model) or not principal.may_use(model):
                raise ModelNotFound(
                    f"The model {model[:200]!r} does not exist. GET /v1/models lists all.", param="model"
                )
            self._label = model
        work = self._work(inbound)
        self._resumes = parts.settings.resume_streams and is_resumable(inbound)
        principal.limiter.begin()
        admission = parts.admission_of(self._label)
        try:
            cost = float(work.shape.prompt_units + work.shape.output_units)
            weight = principal.weight * principal.priority_of(self._headers.get("x-priority")).weight
            try:
                await admission.enter(self._tenant, weight=weight, cost=cost, deadline_s=work.deadline_s)
            except RequestError as error:
                parts.metrics.rejections.labels(self._label, error.code or "internal_error").inc()
                raise
            parts.metrics.queue_time.labels(self._label).observe(parts.clock() - self._arrived_s)
            parts.budget.enter()
            try:
                await self._answer(inbound, work)
            finally:
                parts.budget.leave()
                admission.leave()
        finally:
            principal.limiter.end()

    def _work(self, inbound: Inbound) -> Work:
        parts = self._parts
        session_header = parts.settings.routing.session_header
        shape = shape_of(
            inbound,
            adapter=None if inbound.model is None else parts.fleet.adapter_of(inbound.model),
            region=self._headers.get("x-region", parts.settings.region),
            session=None if session_header is None else self._headers.get(session_header),
            tenant=self._tenant,
            token_ids=parts.token_ids,
        )
        key = parts.settings.replica_key
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._scope["headers"]
            if (text := name.decode("latin-1")) not in _NOT_FORWARDED
            and not (key is not None and text == "authorization")
        ]
        headers.append(("x-request-id", self._request_id))
        if key is not None:
            headers.append(("authorization", f"Bearer {key}"))
        return Work(
            request_id=self._request_id,
            model=inbound.model,
            shape=shape,
            outgoing=Outgoing(method=inbound.method, target=inbound.target, headers=headers, body=inbound.body),
            replayable=inbound.replayable,
            deadline_s=self._deadline_s(),
            only=parts.owners.owner_of(inbound),
        )

    def _deadline_s(self) -> float | None:
        timeout_s = read_timeout_s(self._headers, self._parts.settings.server.request_timeout_s)
        header = self._headers.get("x-request-deadline")
        if header is not None:
            try:
                left_s = float(header) - time.time()
            except ValueError:
                left_s = math.nan
            if not math.isfinite(left_s):
                raise InvalidRequest(f"Header x-request-deadline: {header[:40]!r} is no Unix time in seconds.")
            if left_s <= 0.0:
                raise DeadlineExceeded(
                    "The request's deadline had passed when it came. Compare the clocks if it had not."
                )
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        return None if timeout_s is None else self._arrived_s + timeout_s

    async def _answer(self, inbound: Inbound, work: Work) -> None:
        parts = self._parts
        hedge = parts.hedge_of(self._label)
        hedge.arrived()
        attempt = await parts.attempts.first_answer(work, hedge)
        delay_s = parts.clock() - self._arrived_s
        parts.metrics.time_to_first.labels(self._label).observe(delay_s)
        try:
            if attempt.answer.status < 400:
                hedge.answered(delay_s)
            parts.owners.learn(inbound, attempt)
            await self._pass_on(attempt, work)
            outcome = parts.metrics.successes.labels(self._label) if attempt.answer.status < 400 else None
            if outcome is None:
                parts.metrics.failures.labels(self._label, str(attempt.answer.status)).inc()
            else:
                outcome.inc()
            parts.metrics.e2e_latency.labels(self._label).observe(parts.clock() - self._arrived_s)
        finally:
            attempt.close()

    async def _pass_on(self, attempt: Attempt, work: Work) -> None:
        answer = attempt.answer
        self._is_sse = (answer.header("content-type") or "").startswith("text/event-stream")
        await self._start(answer.status, answer.headers)
        try:
            left_s = None if work.deadline_s is None else work.deadline_s - self._parts.clock() + _DEADLINE_GRACE_S
            async with asyncio.timeout(left_s):
                if self._is_sse:
                    await self._pass_events(attempt, work)
                else:
                    await self._pass_bytes(answer)
        except AnswerTorn as torn:
            raise WorkerDied(
                "The server that worked on this request was lost in the middle of its answer. Try again."
            ) from torn
        except TimeoutError:
            raise DeadlineExceeded("The request's deadline passed before it was done.") from None

    async def _pass_bytes(self, answer: Answer) -> None:
        await self._send_part(answer.first, more=not answer.whole)
        if not answer.whole:
            async for chunk in answer.rest():
                await self._send_part(chunk, more=True)
            await self._send_part(b"", more=False)

    async def _pass_events(self, attempt: Attempt, work: Work) -> None:
        """Passes a stream of events on; one that can go on elsewhere does."""
        stream = EventStream(self._send_part, StreamRecord() if self._resumes else None)
        try:
            await stream.pass_on(attempt.answer)
        except AnswerTorn as torn:
            self._lost(attempt, torn)
            await self._resume(stream, attempt, work, torn)
        await self._send_part(b"", more=False)

    async def _resume(self, stream: EventStream, attempt: Attempt, work: Work, torn: AnswerTorn) -> None:
        parts = self._parts
        attempt.close(failed=True)
        for _attempt in range(1, parts.settings.retries.max_attempts):
            if not stream.can_resume:
                break
            await parts.budget.take()
            try:
                again = await parts.attempts.first_answer(work)
            finally:
                parts.budget.give_back()
            try:
                await stream.resume(again.answer)
                parts.metrics.resumes.labels(self._label, "done").inc()
                return
            except AnswerTorn as lost:
                self._lost(again, lost)
                torn = lost
            except Diverged:
                parts.metrics.resumes.labels(self._label, "diverged").inc()
                break
            finally:
                again.close()
        raise torn

    def _lost(self, attempt: Attempt, torn: AnswerTorn) -> None:
        replica_id = attempt.decision.replica_id
        _LOG.warning("request %s: replica %s was lost in mid-answer: %s", self._request_id, replica_id, torn)
        self._parts.metrics.lost.labels(replica_id, "mid_answer").inc()
        self._parts.fleet.failed(replica_id)
        self._parts.hurry()

    async def _start(self, status: int, headers: Headers) -> None:
        self._started = True
        raw = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers
            if name.lower() not in _NOT_PASSED_BACK
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _send_part(self, part: bytes, *, more: bool) -> None:
        if part or not more:
            await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def _watch_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.abort(RequestCancelled("The client went away."))

    async def _tell(self, error: RequestError) -> None:
        """Answers with an error, also in the middle of a stream of events.

        In the middle of any other answer nothing can be said: without its last part, the server breaks the connection.
        """
        if self._label:
            self._parts.metrics.failures.labels(self._label, error.code or "internal_error").inc()
        if isinstance(error, RequestCancelled):
            return
        if not self._started:
            await error_response(error)(self._scope, self._receive, self._send)
        elif self._is_sse:
            await self._send_part(b"data: " + error_json(error) + b"\n\n" + _DONE, more=False)
