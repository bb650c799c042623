"""What runs beside the gateway of ``sixfold up``: a Ray, the services on it, and the agent that keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx

from sixfold.core.errors import SixfoldError, UsageError
from sixfold.core.serving.lifecycle import Listening
from sixfold.core.telemetry.logs import log_format
from sixfold.core.watcher import content_digest, watch_file
from sixfold.scaling.cluster.engine import ClusterError, RayEngine, ServiceStatus
from sixfold.scaling.cluster.local_ray import LocalRay, RayFailed
from sixfold.scaling.disagg.service import RoleService
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry import Registry
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.spec import RolesSpec, ScalingSpec
from sixfold.scaling.up.agent import Agent
from sixfold.scaling.up.divisions import DivisionTeller
from sixfold.scaling.up.revisions import Revisions
from sixfold.scaling.up.settings import Site, check_roles

_LOG = logging.getLogger(__name__)

_STEP_S = 1.0
_LOAD_TIMEOUT_S = 2.0
_RESTART_S = 2.0
_GONE_POLL_S = 0.2
_GONE_MARGIN_S = 30.0
_GIVEN_UP = frozenset(("DEPLOY_FAILED",))
"""Ray Serve's word for a service that it has stopped trying to start."""


class RunningSite:
    """Brings services up beside a gateway, keeps them, and drains them at the end.

    A context manager for `sixfold.core.serving.lifecycle.run`; entering does not wait for anything to start.

    Args:
        config: The configuration file; a change of it becomes true while requests go on.
        read: Reads and checks it.
        site: What ``read`` returned at first.
        gateway: What clients reach.
        registry: Where replicas publish themselves.
        table: The same, opened: further gateways read there how requests are divided.
        replica_key: What replicas demand.
        address: Of a cluster's head to join; None starts a Ray of this machine.
        keep: Whether the services of a cluster that was joined run on at the end.
        on_ready: Called once, with the URL and the models that are up, when each is up or has failed and one is up.
    """

    def __init__(
        self,
        site: Site,
        gateway: Gateway,
        *,
        config: Path,
        read: Callable[[], Site],
        registry: RegistryPlace,
        table: Registry,
        replica_key: str | None,
        address: str | None,
        keep: bool,
        on_ready: Callable[[str, Sequence[str]], None],
    ) -> None:
        self._config = config
        self._read = read
        self._seen = content_digest(config)
        self._site = site
        self._gateway = gateway
        self._registry = registry
        self._teller = DivisionTeller(table)
        self._replica_key = replica_key
        self._address = address
        self._keep = keep
        self._on_ready = on_ready
        self._ray: LocalRay | None = None
        self._engine: RayEngine | None = None
        self._listening: Listening | None = None
        self._agent: Agent | None = None
        self._revisions: Revisions | None = None
        self._stop_watching = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._told: dict[str, str] = {}
        self._is_ready = False
        self.error: UsageError | None = None

    def on_listening(self, listening: Listening) -> None:
        """The port takes connections: now the services may start."""
        self._listening = listening
        watching = watch_file(self._config, self._reload_async, self._stop_watching, seen=self._seen)
        self._tasks += [asyncio.create_task(self._run()), asyncio.create_task(watching)]

    def reload(self) -> None:
        """Reads the configuration again and makes it true; a broken one changes nothing and says why."""
        try:
            site = self._read()
        except UsageError as error:
            _LOG.error("the changed configuration is not taken, the one before holds: %s", error)
            return
        fixed = [
            name
            for name in ("server", "cache_dir")
            if getattr(site.settings, name) != getattr(self._site.settings, name)
        ]
        if site.cluster.model_copy(update={"services": self._site.cluster.services}) != self._site.cluster:
            fixed.append("cluster (but for its services)")
        if fixed:
            _LOG.warning("these parts of the configuration changed and hold only after a restart: %s", ", ".join(fixed))
        # What needs a restart stays as it was, or a replica that starts later would differ from the others.
        settings = self._site.settings.model_copy(update={"models": site.settings.models})
        cluster = self._site.cluster.model_copy(update={"services": site.cluster.services})
        try:
            for name in cluster.services:
                check_roles(cluster, name, settings.models, f"cluster.services.{name}")
        except UsageError as error:  # the file is right, and what it says elsewhere holds only after a restart
            _LOG.error("Restart 'sixfold up', until then the configuration before holds: %s", error)
            return
        self._site = Site(settings=settings, cluster=cluster)
        if self._revisions is not None and self._agent is not None:
            self._revisions.change(self._site, time.monotonic())
            self._agent.change(self._specs(), max_rows=self._max_rows())

    async def _reload_async(self) -> None:
        self.reload()

    async def __aenter__(self) -> RunningSite:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stop_watching.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        forced = self._listening is not None and self._listening.lifecycle.forced_by is not None
        if self._engine is not None:
            if not forced and not (self._keep and self._address):
                await self._drain(self._engine)
            self._engine.close()
        if self._ray is not None:
            await self._ray.stop()

    def urls(self, service: str) -> Sequence[str]:
        """See `sixfold.scaling.up.agent.Observer`."""
        which = self._site.services.get(service) or RoleService(name=service, model=service)  # or one that has gone
        return [
            each.record.url
            for each in self._gateway.fleet
            if each.up and not each.draining and each.serves(which.model) and each.record.role == which.role
        ]

    def num_held(self, service: str) -> int:
        """See `sixfold.scaling.up.agent.Observer`."""
        entry = self._site.settings.models.get(
            service
        )  # None once that the file names it no more, and of prefill replicas
        return 0 if entry is None or self.urls(service) else self._gateway.num_waiting(entry.names)

    def _specs(self) -> Mapping[str, ScalingSpec | RolesSpec]:
        return {name: self._site.scaling(name) for name in self._site.settings.models}

    def _max_rows(self) -> Mapping[str, int]:
        limits = {name: entry.limits.max_running_sequences for name, entry in self._site.settings.models.items()}
        return {name: most for name, most in limits.items() if most is not None}

    async def _run(self) -> None:
        assert self._listening is not None
        while True:
            try:
                await self._run_once()
            except (ClusterError, RayFailed) as error:
                if not self._is_ready:  # what never worked is the operator's to mend
                    self._fail(str(error))
                    return
                _LOG.error("%s", error)
            except Exception as error:  # a defect of ours here must not leave a gateway that nobody looks after
                _LOG.exception("the agent failed")
                if not self._is_ready:
                    self._fail(f"A defect in 'sixfold up': {type(error).__name__}: {error}")
                    return
            await asyncio.sleep(_RESTART_S)

    async def _run_once(self) -> None:
        """Starts or finds the cluster, and keeps it until it is lost."""
        await self._end_cluster()
        self._gateway.shares.clear()  # of rollouts on a cluster that was lost
        head_url = self._address
        if head_url is None:
            _tell("starting Ray on this machine")
            self._ray = LocalRay()
            await self._ray.start()
            head_url = self._ray.head_url
        self._engine = RayEngine(head_url)
        _tell(f"Ray's head is at {head_url}")
        make = partial(Revisions, registry=self._registry, replica_key=self._replica_key)
        revisions = await asyncio.to_thread(make, self._engine, self._site, self._gateway)
        revisions.change(self._site, time.monotonic())  # what changed meanwhile
        async with httpx.AsyncClient(timeout=_LOAD_TIMEOUT_S, trust_env=False) as http:
            agent = Agent(
                *(self._specs(), revisions, self),
                clock=time.monotonic,
                http=http,
                decisions=self._gateway.decisions,
                max_rows=self._max_rows(),
            )
            self._agent, self._revisions = agent, revisions
            while self._ray is None or self._ray.is_running:
                try:
                    await self._round(agent, revisions)
                except Exception as error:  # the border of a round: ending it all would end the replicas that serve
                    if not self._is_ready:
                        raise
                    if isinstance(error, ClusterError):
                        _LOG.warning("the cluster can't be told anything, and what runs goes on: %s", error)
                    else:
                        _LOG.exception("a defect ended this round of the agent, and what runs goes on")
                await asyncio.sleep(_STEP_S)
        raise ClusterError("Ray on this machine has ended, and all replicas with it. It is started again.")

    async def _round(self, agent: Agent, revisions: Revisions) -> None:
        # First: no replica on trial may be there before every gateway knows its share.
        await self._teller.tell(tuple(self._site.services), revisions.divisions)
        self._follow(await agent.step(), agent.counts)
        if revisions.roll(agent.counts, time.monotonic()):
            agent.tell_again()

    def _follow(self, status: Mapping[str, ServiceStatus], counts: Mapping[str, int]) -> None:
        """Says what has changed of each service, and once that all have settled."""
        up: list[str] = []
        failed: list[str] = []
        for service, count in counts.items():
            num_up, found = len(self.urls(service)), status.get(service)
            state = f"{num_up} of {count} replicas are up" if found is None or num_up else found.state.lower()
            if found is not None and found.message and found.state != "RUNNING":
                state += f": {found.message.strip()[-1000:]}"
            if self._told.get(service) != state:
                self._told[service] = state
                _tell(f"{service}: {state}")
            if num_up:
                up.append(service)
            elif found is not None and found.state in _GIVEN_UP:
                failed.append(f"{service}: {found.message}")
        if self._is_ready or len(up) + len(failed) < len(counts):
            return
        models = [service for service in up if service in self._site.settings.models]
        if not models:
            self._fail("No model is up.\n" + "\n".join(failed))
            return
        assert self._listening is not None
        self._is_ready = True
        self._on_ready(self._listening.url, models)

    def _fail(self, message: str) -> None:
        assert self._listening is not None
        self.error = UsageError(message)
        self._listening.lifecycle.drain()

    async def _drain(self, engine: RayEngine) -> None:
        """Ends the services, each replica when its requests have ended; the gateway has none any more."""
        _tell("draining the replicas")
        timeout_s = self._site.settings.server.drain_timeout_s + _GONE_MARGIN_S
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.to_thread(engine.apply, [])
                while await asyncio.to_thread(engine.status):
                    await asyncio.sleep(_GONE_POLL_S)
        except TimeoutError:
            _LOG.warning("replicas still run after %g s", timeout_s)
        except SixfoldError as error:
            _LOG.warning("the replicas can't be drained: %s", error)

    async def _end_cluster(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._ray is not None:
            await self._ray.stop()


def _tell(line: str) -> None:
    """Progress goes to standard error, where all lines are objects if any is; standard output has what a script waits for."""
    if log_format() == "json":
        _LOG.info(line)
    else:
        with contextlib.suppress(OSError, ValueError):  # a full disk stops the telling, not the replicas
            print(f"sixfold up: {line}", file=sys.stderr, flush=True)
