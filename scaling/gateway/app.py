"""The gateway as an application: its own few routes, keys, and everything else passed on."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import RequestError
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.error_responses import error_response, internal_error_response
from sixfold.core.serving.gate import SAFE_METHODS
from sixfold.core.serving.handshake import check_origin
from sixfold.core.serving.keys import KeyRing
from sixfold.core.serving.request_facts import read_headers
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.submission_record import error_name
from sixfold.scaling.gateway.admission import Admission
from sixfold.scaling.gateway.attempts import Attempts
from sixfold.scaling.gateway.budgets import HedgeClock, RetryBudget
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.forwarding import Buffered
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.inbound import TokenIds
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.own_routes import OwnRoutes
from sixfold.scaling.gateway.owners import Owners
from sixfold.scaling.gateway.parts import Parts
from sixfold.scaling.gateway.plan_follower import PlanFollower
from sixfold.scaling.gateway.policies import build_policy
from sixfold.scaling.gateway.prober import Prober
from sixfold.scaling.gateway.proxy import ProxiedRequest
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.gateway.splitter import PromptSplitter
from sixfold.scaling.gateway.upstream import Upstream
from sixfold.scaling.registry import Registry, ReplicaRecord
from sixfold.scaling.rollout.split import Splitter
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.router import Router

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing

_LOG = logging.getLogger(__name__)
_MAX_LOGGED_PATH = 200
_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")


class Gateway:
    """One gateway; what `sixfold.core.serving.lifecycle.serve` runs.

    Args:
        settings: All of it.
        registry: Where replicas publish themselves, if anywhere.
        token_ids: Tokenizes prompts for ``routing.policy: kv``.
        clock: Monotonic seconds.
        tracing: Where traces of requests go; closed by the caller.

    Attributes:
        shares: Of models that are being rolled out, by each name that clients use: how requests are divided among revisions.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        registry: Registry | None = None,
        token_ids: TokenIds | None = None,
        clock: Callable[[], float] = monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._records = tracing is not None or settings.server.access_log
        self.settings: ServerSettings = settings.server
        self.drain = Drain()
        self.kv_index = KvIndex()
        self._gateway_settings = settings
        self._registry = registry
        self._clock = clock
        self._keys = KeyRing(settings.server.api_keys, clock)
        self._admissions: dict[str, Admission] = {}
        self._hedges: dict[str, HedgeClock] = {}
        self.shares: dict[str, Splitter] = {}
        self._buffered = Buffered(settings.admission.max_buffered_bytes)
        self._router = Router(build_policy(settings.routing, self.kv_index))
        self._metrics = GatewayMetrics(self._gauges)
        self.decisions = DecisionLog()
        plan = settings.plan
        self.geography = Geography(
            settings.region or "",
            follows=plan is not None,
            clock=clock,
            decisions=self.decisions,
            refusal_s=2.0 if plan is None else plan.refusal_s,
        )
        self.prefill_router = Router(build_policy(settings.routing, self.kv_index))
        self.fleet = Fleet(
            (self._router, self.prefill_router),
            OutlierDetector(settings.outliers, self.decisions),
            self.geography.permits,
            clock,
            self._on_change,
        )
        self._follow_caches: Callable[[list[ReplicaRecord]], None] | None = None
        self._upstream = Upstream(connect_timeout_s=settings.health.connect_timeout_s)
        self._prober = Prober(
            settings, self.fleet, self._upstream, registry, clock, self._metrics.registry_failures.inc
        )
        self._follower = (
            None
            if plan is None
            else PlanFollower(plan, self.geography, partial(self._prober.publish, "plan"), self._metrics.unsaved.inc)
        )
        self._splitter = self._build_splitter()
        self._parts = self._build_parts(token_ids)
        self._own = OwnRoutes(
            settings.server, self._keys, self.drain, self.fleet, self.geography, self._metrics, self.decisions
        )
        self.app: ASGIApp = self
        if settings.server.cors_origins:
            self.app = CORSMiddleware(
                self,
                allow_origins=list(settings.server.cors_origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"],
            )

    def num_waiting(self, models: Iterable[str]) -> int:
        """Requests of models, by the names that clients use, that wait at the door."""
        return sum(self._admissions[model].num_waiting for model in models if model in self._admissions)

    def _build_splitter(self) -> PromptSplitter | None:
        settings = self._gateway_settings
        if settings.disaggregation is None:
            return None
        return PromptSplitter(
            settings.disaggregation,
            fleet=self.fleet,
            decode_router=self._router,
            prefill_router=self.prefill_router,
            upstream=self._upstream,
            metrics=self._metrics,
            decisions=self.decisions,
            clock=self._clock,
        )

    def _build_parts(self, token_ids: TokenIds | None) -> Parts:
        settings = self._gateway_settings
        budget = RetryBudget(settings.retries)
        attempts = Attempts(
            fleet=self.fleet,
            geography=self.geography,
            router=self._router,
            upstream=self._upstream,
            settings=settings.retries,
            budget=budget,
            metrics=self._metrics,
            clock=self._clock,
            hurry=self._prober.hurry,
            splitter=self._splitter,
            shares=self.shares,
        )
        return Parts(
            settings=settings,
            fleet=self.fleet,
            geography=self.geography,
            attempts=attempts,
            budget=budget,
            metrics=self._metrics,
            owners=Owners(guards=bool(settings.server.api_keys)),
            admission_of=self._admission_of,
            hedge_of=self._hedge_of,
            token_ids=token_ids,
            hurry=self._prober.hurry,
            clock=self._clock,
        )

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncGenerator[None]:
        """Watches the replicas while the block runs; it begins when each was looked at once.

        A defect that ends the watching ends the block: with a picture that stands still, nobody is served for long.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._upstream)
            if self._gateway_settings.routing.policy == "kv":
                from sixfold.scaling.gateway.kv_subscriber import KvSubscriber  # loads ZMQ, which the rest does without

                subscriber = KvSubscriber(self.kv_index)
                stack.push_async_callback(subscriber.close)
                self._follow_caches = subscriber.follow
            looked = asyncio.Event()
            if self._follower is not None:
                await self._follower.start()
            try:
                async with asyncio.TaskGroup() as group:
                    watching = [group.create_task(self._prober.run(looked.set))]
                    if self._follower is not None:
                        watching.append(group.create_task(self._follower.run()))
                    await looked.wait()
                    try:
                        yield
                    finally:
                        for task in watching:
                            task.cancel()
            except ExceptionGroup as ended:
                raise ended.exceptions[0] from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1011, "reason": "The gateway passes no WebSockets on yet."})
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        wished = headers.get(b"x-request-id", b"")
        request_id = wished.decode() if _SANE_ID.fullmatch(wished) else f"req_{secrets.token_hex(12)}"

        record: RequestRecord | None = None
        if self._records:
            record = RequestRecord(request_id, monotonic(), trace=None, logs_access=self.settings.access_log)
        status = 499  # until an answer begins

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await (send(message) if record is None else record.send(send, message))

        try:
            if b"origin" in headers and scope["method"] not in SAFE_METHODS:
                check_origin(scope, self.settings.cors_origins)
            response = self._own.answer(scope, headers)
            if response is not None:
                await response(scope, receive, send_named)
                return
            await self._proxy(scope, receive, send_named, request_id, headers.get(b"authorization"), record)
        except RequestError as error:
            if record is not None:
                record.error = error_name(error)
            await error_response(error)(scope, receive, send_named)
        except Exception:  # the border of a request: the client gets an answer and the log the reason
            _LOG.exception("request %s: a defect in the gateway", request_id, extra={"request_id": request_id})
            await internal_error_response(request_id)(scope, receive, send_named)
        finally:
            if record is not None:
                record.end(scope["method"], scope["path"][:_MAX_LOGGED_PATH], status)

    async def _proxy(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        authorization: bytes | None,
        record: RequestRecord | None,
    ) -> None:
        if record is not None and self._tracing is not None:
            record.trace = self._tracing.begin(read_headers(scope), name="request", arrived_s=monotonic())
            receive = record.timed(receive)
        principal = self._keys.authenticate(authorization)
        if self.drain.begun:
            raise self.drain.refusal()
        tenant = principal.name
        if not self.settings.api_keys and authorization is not None:
            # The replicas know the keys: here a key only stands for whom to be fair to.
            tenant = hashlib.blake2b(authorization, digest_size=8).hexdigest()
        if record is not None:
            record.tenant = tenant
        request = ProxiedRequest(
            self._parts,
            self._buffered,
            scope,
            receive,
            send,
            request_id=request_id,
            principal=principal,
            tenant=tenant,
            record=record,
        )
        self.drain.enter(request)
        try:
            await request.run()
        finally:
            self.drain.leave(request)

    def _admission_of(self, model: str) -> Admission:
        found = self._admissions.get(model)
        if found is None:
            limits = self._gateway_settings.admission
            found = self._admissions[model] = Admission(
                capacity=lambda: len(self.fleet.available(model or None)) * limits.max_running_per_replica,
                max_waiting=limits.max_waiting,
                hold_s=limits.hold_s,
                no_replica=lambda: self.geography.no_replica(self.fleet.names_of(model or None)),
                clock=self._clock,
            )
        return found

    def _hedge_of(self, model: str) -> HedgeClock:
        return self._hedges.setdefault(model, HedgeClock(self._gateway_settings.hedging))

    def _on_change(self) -> None:
        if self._follow_caches is not None:
            self._follow_caches([replica.record for replica in self.fleet])
        for admission in self._admissions.values():
            admission.pump()

    def _gauges(self) -> Mapping[str, Mapping[tuple[str, ...], float]]:
        replicas = [(replica.record.replica_id, replica) for replica in self.fleet]
        return {
            "num_requests_running": {(each,): self._router.num_running(each) for each, _replica in replicas},
            "num_requests_waiting": {(model,): each.num_waiting for model, each in self._admissions.items()},
            "gateway_replica_up": {
                (each, replica.record.region): float(replica.up and not replica.draining) for each, replica in replicas
            },
            "decisions_total": {(): self.decisions.num},
            "gateway_plan_epoch": {(): self.geography.plan.epoch},
            "gateway_agent_reached": {}
            if self._follower is None
            else {(url,): float(reached) for url, reached in self._follower.reached.items()},
            "gateway_buffered_bytes": {(): self._buffered.num_bytes},
            "gateway_kv_blocks": {(each,): self.kv_index.num_blocks(each) for each, _replica in replicas},
        }
