"""One request from its first byte to its last: read, admitted, tried, passed on, and put away whatever happens."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.types import Receive, Scope, Send

from sixfold.core.errors import InvalidRequest, ModelNotFound, NotFound, NotReady, RequestCancelled, RequestError
from sixfold.core.serving.body import BodyStream
from sixfold.core.serving.form_reader import is_form
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.request_facts import read_headers
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.submission_record import error_name
from sixfold.scaling.gateway.form_peek import peek_form
from sixfold.scaling.gateway.forwarding import Buffered, deadline_of, forwarded_headers, tenant_header
from sixfold.scaling.gateway.geography import Journey
from sixfold.scaling.gateway.inbound import Inbound, read_inbound, shape_of
from sixfold.scaling.gateway.listing import Listed
from sixfold.scaling.gateway.object_names import lists_objects, makes_batch, makes_file, object_of_path
from sixfold.scaling.gateway.parts import Parts
from sixfold.scaling.gateway.relay import Relay
from sixfold.scaling.gateway.resume import is_resumable
from sixfold.scaling.gateway.upload_peek import peek_upload
from sixfold.scaling.gateway.upstream import Outgoing
from sixfold.scaling.gateway.work import Work

_EVERY_REPLICA = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/metrics"))


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
        record: What becomes of it, where that is traced or logged.
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
        record: RequestRecord | None = None,
    ) -> None:
        self._record = record
        self._parts = parts
        self._buffered = buffered
        self._scope = scope
        self._receive = receive
        self._request_id = request_id
        self._principal = principal
        self._tenant = tenant
        self._arrived_s = parts.clock()
        self._headers = read_headers(scope)
        self._priority = principal.priority
        self._num_held = 0
        self._label = ""  # the model's name in metrics: only of models that exist
        self._reason: RequestError | None = None
        self._task: asyncio.Task[object] | None = None
        self._relay = Relay(parts, send, request_id)

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
        if not path.startswith("/"):
            raise NotFound("This is no path of a server. GET /v1/models lists the models.")
        if path in _EVERY_REPLICA:
            raise NotFound(f"{path} concerns single servers. Send it to each of them, not to the gateway.")
        if path.startswith("/v1/images/files/"):
            raise NotFound(
                "Pictures have no addresses at the gateway. Set 'response_format' to 'b64_json' when they are drawn."
            )
        if sum(name == b"content-type" for name, _value in scope["headers"]) > 1:
            raise InvalidRequest(
                "The header content-type is given more than once. Give it once."
            )  # whom would one believe?
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
        uploads = makes_file(scope["method"], path)
        raw: bytes = scope.get("raw_path") or path.encode()
        return read_inbound(
            scope["method"],
            raw.partition(b"?")[0].decode("latin-1"),
            scope["query_string"],
            self._headers,
            body,
            form={} if uploads else await peek_form(self._headers, body) if form and body else None,
            upload=await peek_upload(self._headers, body) if uploads else None,
        )

    async def _admit_and_answer(self, inbound: Inbound) -> None:
        parts, principal, model = self._parts, self._principal, inbound.model
        if model is not None:
            if not parts.fleet.knows(model) and parts.fleet.may_know_more:
                raise NotReady("Not all servers were reached yet. Try again in a moment.", retry_after_s=2.0)
            if not parts.fleet.knows(model) or not principal.may_use(model):
                raise ModelNotFound(
                    f"The model {model[:200]!r} does not exist. GET /v1/models lists all.", param="model"
                )
            self._label = model
            self._check_region(model)
            if self._record is not None:
                self._record.model = model
        elif principal.models is not None and inbound.body and not _is_about_objects(inbound):
            raise InvalidRequest(
                "The API key is for certain models only. Name one of them in the parameter 'model'.",
                param="model",
                code="missing_required_parameter",
            )
        self._priority = principal.priority_of(self._headers.get("x-priority"))
        journey = parts.geography.enter(parts.fleet.names_of(model), self._headers.get("x-region"))
        try:
            await self._admit(inbound, self._work(inbound, journey))
        finally:
            parts.geography.leave(journey)

    async def _admit(self, inbound: Inbound, work: Work) -> None:
        parts, principal = self._parts, self._principal
        principal.limiter.begin()
        admission = parts.admission_of(self._label)
        try:
            cost = float(work.shape.prompt_units + work.shape.output_units)
            weight = principal.weight * self._priority.weight
            queued_s = monotonic()
            try:
                await admission.enter(self._tenant, weight=weight, cost=cost, deadline_s=work.deadline_s)
            except RequestError as error:
                parts.metrics.rejections.labels(self._label, error.code or "internal_error").inc()
                raise
            parts.metrics.queue_time.labels(self._label).observe(parts.clock() - self._arrived_s)
            if work.trace is not None:
                work.trace.add("queue", queued_s, monotonic())
            parts.budget.enter()
            try:
                await self._answer(inbound, work)
            finally:
                parts.budget.leave()
                admission.leave()
        finally:
            principal.limiter.end()

    def _check_region(self, model: str) -> None:
        try:
            self._parts.geography.check(self._parts.fleet.names_of(model))
        except RequestError as error:
            self._parts.metrics.rejections.labels(model, error.code or "internal_error").inc()
            raise

    def _work(self, inbound: Inbound, journey: Journey) -> Work:
        parts = self._parts
        session_header = parts.settings.routing.session_header
        checks_keys = bool(parts.settings.server.api_keys)
        shape = shape_of(
            inbound,
            adapter=None if inbound.model is None else parts.fleet.adapter_of(inbound.model),
            region=self._headers.get("x-region", parts.settings.region),
            session=None if session_header is None else self._headers.get(session_header),
            tenant=self._tenant,
            token_ids=parts.token_ids,
        )
        trace = None if self._record is None else self._record.trace
        headers = forwarded_headers(
            self._scope["headers"],
            request_id=self._request_id,
            replica_key=parts.settings.replica_key,
            passes_key=parts.settings.replica_key is None and not checks_keys,
            priority=self._priority if checks_keys else None,
            trace={} if trace is None else trace.headers(),
        )
        limit_s = parts.settings.server.request_timeout_s
        return Work(
            request_id=self._request_id,
            model=inbound.model,
            shape=shape,
            journey=journey,
            outgoing=Outgoing(method=inbound.method, target=inbound.target, headers=headers, body=inbound.body),
            replayable=inbound.replayable,
            deadline_s=deadline_of(self._headers, limit_s=limit_s, arrived_s=self._arrived_s),
            only=self._only(inbound),
            tenant=tenant_header(self._tenant) if checks_keys else None,
            trace=trace,
        )

    def _only(self, inbound: Inbound) -> frozenset[str] | None:
        """Which servers may do it, where it is about what they keep, or to be kept."""
        parts = self._parts
        if inbound.upload is not None:
            return parts.places.places_of(inbound.upload, self._headers, self._principal, tenant=self._tenant)
        return parts.owners.owners_of(inbound, tenant=self._tenant)

    async def _list(self, inbound: Inbound, work: Work) -> None:
        """Answers with a page of what all servers keep."""
        found = await self._parts.lists.page(inbound, work)
        if isinstance(found, Listed):
            await self._relay.give(found.body, found.headers)
            return
        try:
            await self._relay.pass_on(found, work, resumes=False)
        finally:
            found.close()

    async def _answer(self, inbound: Inbound, work: Work) -> None:
        parts = self._parts
        # With API keys a list is never another server's own, also where those whose lists may be shown have just gone.
        if lists_objects(inbound) and (parts.settings.server.api_keys or parts.lists.has_keepers):
            await self._list(inbound, work)
            return
        resumes = parts.settings.resume_streams and is_resumable(inbound)
        hedge = parts.hedge_of(self._label)
        hedge.arrived()
        attempt = await parts.attempts.first_answer(work, hedge)
        if self._record is not None:
            self._record.replica = attempt.decision.replica_id
        delay_s = parts.clock() - self._arrived_s
        parts.metrics.time_to_first.labels(self._label).observe(delay_s)
        try:
            if attempt.answer.status < 400:
                hedge.answered(delay_s)
            parts.owners.learn(inbound, attempt, tenant=self._tenant)
            await self._relay.pass_on(attempt, work, resumes=resumes)
            if attempt.answer.status < 400:
                parts.metrics.successes.labels(self._label).inc()
            else:
                parts.metrics.failures.labels(self._label, str(attempt.answer.status)).inc()
            parts.metrics.e2e_latency.labels(self._label).observe(parts.clock() - self._arrived_s)
        finally:
            attempt.close()

    async def _watch_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.abort(RequestCancelled("The client went away."))

    async def _tell(self, error: RequestError) -> None:
        if self._record is not None:
            self._record.error = error_name(error)
        if self._label:
            self._parts.metrics.failures.labels(self._label, error.code or "internal_error").inc()
        if not isinstance(error, RequestCancelled):
            await self._relay.tell(error, self._scope, self._receive)


def _is_about_objects(inbound: Inbound) -> bool:
    """Whether what it names says which models it is for: an object that is there, or the lines of a file."""
    return inbound.upload is not None or makes_batch(inbound) or object_of_path(inbound.path) is not None
