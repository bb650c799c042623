"""``sixfold hub``: one candidate as a process."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterable

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sixfold.core.decisions import merged
from sixfold.core.errors import NotReady, UsageError
from sixfold.scaling.hub.config import HubSettings, StoreSettings
from sixfold.scaling.hub.etcd_store import EtcdStore
from sixfold.scaling.hub.hub import Hub
from sixfold.scaling.hub.messages import SiteReport
from sixfold.scaling.hub.model import Plan, Snapshot
from sixfold.scaling.hub.placement import optimize
from sixfold.scaling.hub.sqlite_store import SqliteStore
from sixfold.scaling.hub.store import Store
from sixfold.scaling.hub.web import Routes, WebFace, decode, serve_web


async def run_hub(settings: HubSettings) -> None:
    """Runs a candidate until it is told to stop; it gives the lead away then.

    Raises:
        UsageError: The solver is missing, or the store's file cannot be opened.
    """
    if importlib.util.find_spec("highspy") is None:
        raise UsageError("The hub's solver is not installed. Run: pip install 'sixfold[hub]'")
    store = open_store(settings.store)

    async def optimize_aside(snapshot: Snapshot) -> Plan:
        return await asyncio.to_thread(optimize, snapshot, deadline_s=settings.solve_s)

    hub = Hub(
        settings.hub_id,
        store,
        settings.fleet(),
        optimize_aside,
        clock=time.monotonic,
        ttl_s=settings.lead_ttl_s,
        plan_every_s=settings.plan_every_s,
    )
    registry = CollectorRegistry()
    registry.register(HubMetrics(hub))
    stepping = asyncio.create_task(hub.run())

    def on_ready() -> None:
        print(f"Hub {settings.hub_id} listens on http://{settings.host}:{settings.port}", flush=True)

    try:
        await serve_web(WebFace(hub_routes(hub), registry, settings.token), settings.host, settings.port, on_ready)
    finally:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)
        await store.close()


def open_store(settings: StoreSettings) -> Store:
    """The store that the operator chose."""
    if settings.sqlite is not None:
        return SqliteStore(settings.sqlite)
    assert settings.etcd is not None  # the settings have one of both
    return EtcdStore(settings.etcd)


def hub_routes(hub: Hub) -> Routes:
    """What a candidate answers."""

    def health(_body: bytes) -> bytes:
        """Whether this candidate leads, the epoch of the newest plan, and the state of each site; needs no token."""
        epoch = 0 if hub.plan is None else hub.plan.epoch
        state = {"status": "ok", "hub_id": hub.hub_id, "leads": hub.leads, "epoch": epoch, "sites": hub.site_states()}
        return msgspec.json.encode(state)

    def plan(_body: bytes) -> bytes:
        """The newest plan; 503 before the first."""
        if hub.plan is None:
            raise NotReady("There is no plan yet: no site has reported, or no candidate leads.", retry_after_s=5)
        return msgspec.json.encode(hub.plan)

    def report(body: bytes) -> bytes:
        """What a site's agent reports; answered with the newest plan where the site has an older one."""
        return msgspec.json.encode(hub.hear(decode(body, SiteReport)))

    def decisions(_body: bytes) -> bytes:
        """Changed placements, with their reasons."""
        return msgspec.json.encode(merged({f"hub/{hub.hub_id}": hub.decisions.recent}))

    return {
        ("GET", "/healthz"): health,
        ("GET", "/plan"): plan,
        ("GET", "/decisions"): decisions,
        ("POST", "/report"): report,
    }


class HubMetrics(Collector):
    """A candidate's state, read when it is asked for.

    Args:
        hub: The candidate.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        hub = self._hub
        plan = hub.plan or Plan()
        yield GaugeMetricFamily("sixfold:hub_leads", "1 while this candidate leads.", value=float(hub.leads))
        yield GaugeMetricFamily("sixfold:hub_epoch", "Epoch of the newest plan.", value=plan.epoch)
        yield GaugeMetricFamily(
            "sixfold:hub_objective", "Cost per hour of the newest plan, penalties included.", value=plan.objective
        )
        yield GaugeMetricFamily(
            "sixfold:hub_notes", "Constraints that keep the newest plan from a better one.", value=len(plan.notes)
        )
        yield CounterMetricFamily("sixfold:hub_plans", "Plans that this candidate wrote.", value=hub.num_plans)
        states = GaugeMetricFamily("sixfold:hub_site", "1 for the state of each site.", labels=("site", "state"))
        for site_id, state in hub.site_states().items():
            states.add_metric((site_id, state), 1.0)
        yield states
        replicas = GaugeMetricFamily(
            "sixfold:hub_replicas", "Planned replicas.", labels=("model", "site", "accelerator")
        )
        for item in plan.assignments:
            replicas.add_metric((item.model, item.site_id, item.accelerator), item.num_replicas)
        yield replicas
