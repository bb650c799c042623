"""A gateway put together from its parts, and what it watches while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from sixfold.core.decisions import DecisionLog
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.keys import KeyRing
from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.attempts import Attempts
from sixfold.scaling.gateway.budgets import RetryBudget
from sixfold.scaling.gateway.divisions import take_divisions
from sixfold.scaling.gateway.doors import Doors
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.forwarding import Buffered
from sixfold.scaling.gateway.front import Front
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.inbound import TokenIds
from sixfold.scaling.gateway.listing import ObjectLists
from sixfold.scaling.gateway.live_relay import LiveRelay
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.own_routes import OwnRoutes
from sixfold.scaling.gateway.owners import Owners
from sixfold.scaling.gateway.page_relay import PageRelay
from sixfold.scaling.gateway.parts import Parts
from sixfold.scaling.gateway.placing import UploadPlaces
from sixfold.scaling.gateway.plan_follower import PlanFollower
from sixfold.scaling.gateway.policies import build_policy
from sixfold.scaling.gateway.prober import Prober
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.gateway.splitter import PromptSplitter
from sixfold.scaling.gateway.upstream import Upstream
from sixfold.scaling.registry import Registry, ReplicaRecord
from sixfold.scaling.rollout.split import Splitter
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.router import Router

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing

_PROBES_TO_FIND = 2
"""A server that began just after a probe is found by the next; one more for a probe that is late."""


class Gateway:
    """One gateway; what `sixfold.core.serving.lifecycle.serve` runs.

    Args:
        settings: All of it.
        registry: Where replicas publish themselves, if anywhere.
        token_ids: Tokenizes prompts for ``routing.policy: kv``.
        clock: Monotonic seconds.
        tracing: Where traces of requests go; closed by the caller.
        divides: Whether this process carries rollouts out and sets `shares`; otherwise those that the registry tells hold.

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
        divides: bool = False,
    ) -> None:
        self.settings: ServerSettings = settings.server
        self._gateway_settings = settings
        self._clock = clock
        self.drain = Drain()
        self.decisions = DecisionLog()
        self.shares: dict[str, Splitter] = {}
        self.kv_index = KvIndex()
        self._follow_caches: Callable[[list[ReplicaRecord]], None] | None = None
        self._buffered = Buffered(settings.admission.max_buffered_bytes)
        self._metrics = GatewayMetrics(self._gauges)
        self.geography = Geography(
            settings.region or "",
            follows=settings.plan is not None,
            clock=clock,
            decisions=self.decisions,
            refusal_s=2.0 if settings.plan is None else settings.plan.refusal_s,
        )
        self._router = Router(build_policy(settings.routing, self.kv_index))
        self.prefill_router = Router(build_policy(settings.routing, self.kv_index))
        self.fleet = Fleet(
            (self._router, self.prefill_router),
            OutlierDetector(settings.outliers, self.decisions),
            self.geography.permits,
            clock,
            self._on_change,
        )
        self._doors = Doors(
            settings.admission, settings.hedging, fleet=self.fleet, geography=self.geography, clock=clock
        )
        self._upstream = Upstream(connect_timeout_s=settings.health.connect_timeout_s)
        self._prober = Prober(
            *(settings, self.fleet, self._upstream, registry, clock, self._metrics.registry_failures.inc),
            on_divisions=None if divides else partial(take_divisions, self.shares),
        )
        self._follower = self._build_follower()
        self.app = self._build_app(token_ids, tracing)

    def num_waiting(self, models: Iterable[str]) -> int:
        """Requests of models, by the names that clients use, that wait at the door."""
        return self._doors.num_waiting(models)

    def _build_follower(self) -> PlanFollower | None:
        plan = self._gateway_settings.plan
        if plan is None:
            return None
        publish = partial(self._prober.publish, "plan")
        return PlanFollower(plan, self.geography, publish, self._metrics.unsaved.inc)

    def _build_app(self, token_ids: TokenIds | None, tracing: Tracing | None) -> ASGIApp:
        settings, server = self._gateway_settings, self.settings
        keys = KeyRing(server.api_keys, self._clock)
        front = Front(
            server,
            keys,
            self.drain,
            OwnRoutes(server, keys, self.drain, self.fleet, self.geography, self._metrics, self.decisions),
            PageRelay(self.fleet, self._upstream, enabled=server.playground, timeout_s=settings.health.timeout_s),
            LiveRelay(settings, self.fleet, self.geography, self._upstream, self.drain),
            self._build_parts(token_ids),
            self._buffered,
            tracing,
        )
        if not server.cors_origins:
            return front
        return CORSMiddleware(
            front,
            allow_origins=list(server.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"],
        )

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
        guards = bool(settings.server.api_keys)
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
            splitter=self._build_splitter(),
            shares=self.shares,
        )
        return Parts(
            settings=settings,
            fleet=self.fleet,
            geography=self.geography,
            attempts=attempts,
            budget=budget,
            metrics=self._metrics,
            owners=Owners(
                self.fleet,
                guards=guards,
                grace_s=_PROBES_TO_FIND * (settings.health.interval_s + settings.health.timeout_s),
                clock=self._clock,
            ),
            places=UploadPlaces(self.fleet, self.geography, guards=guards),
            lists=ObjectLists(self.fleet, attempts, guards=guards),
            admission_of=self._doors.admission_of,
            hedge_of=self._doors.hedge_of,
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

    def _on_change(self) -> None:
        if self._follow_caches is not None:
            self._follow_caches([replica.record for replica in self.fleet])
        self._doors.pump()

    def _gauges(self) -> Mapping[str, Mapping[tuple[str, ...], float]]:
        replicas = [(replica.record.replica_id, replica) for replica in self.fleet]
        return {
            "num_requests_running": {(each,): self._router.num_running(each) for each, _replica in replicas},
            "num_requests_waiting": {(model,): num for model, num in self._doors.waiting.items()},
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
