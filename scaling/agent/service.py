"""``sixfold agent``: a site's agent as a process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sixfold.core.decisions import merged
from sixfold.core.errors import ConfigError, NotReady
from sixfold.scaling.agent.agent import Agent
from sixfold.scaling.agent.config import AgentSettings
from sixfold.scaling.agent.demand import LocalDemand
from sixfold.scaling.agent.messages import LoadReport
from sixfold.scaling.agent.processes import ProcessEngine
from sixfold.scaling.agent.standing import Standing
from sixfold.scaling.agent.state_file import StateFile
from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.messages import ReportAnswer
from sixfold.scaling.hub.web import Routes, WebFace, decode, serve_web

_STEP_S = 0.5

_log = logging.getLogger(__name__)


async def run_agent(settings: AgentSettings) -> None:
    """Runs a site's agent until it is told to stop; its replicas stop with it.

    Raises:
        ConfigError: The state file holds something else than a plan, or cannot be written.
    """
    engine = ProcessEngine(settings.accelerators, settings.models, host=settings.replica_host)
    agent = _make_agent(settings, engine)
    registry = CollectorRegistry()
    registry.register(AgentMetrics(agent, engine))
    tasks = [asyncio.create_task(_step(agent))]
    tasks += [asyncio.create_task(keep_reporting(agent, settings, url)) for url in settings.hubs]

    def on_ready() -> None:
        print(f"Agent of {settings.site_id} listens on http://{settings.host}:{settings.port}", flush=True)

    try:
        face = WebFace(agent_routes(agent, engine), registry, settings.token)
        await serve_web(face, settings.host, settings.port, on_ready)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()


def _make_agent(settings: AgentSettings, engine: ProcessEngine) -> Agent:
    demand = LocalDemand({name: model.concurrency for name, model in settings.models.items()})
    try:
        return Agent(
            settings.site_id,
            settings.region,
            engine,
            StateFile(settings.state, Standing()),
            demand,
            clock=time.monotonic,
            alone_after_s=settings.alone_after_s,
        )
    except OSError as error:
        raise ConfigError(
            f"state: {settings.state} cannot be written: {error}. Name a file on a disk with room."
        ) from error


async def _step(agent: Agent) -> None:
    while True:
        try:
            agent.step()
        except Exception:  # a mistake of ours in one round must not end the site's scaling
            _log.exception("this round of the agent failed")
        await asyncio.sleep(_STEP_S)


async def keep_reporting(agent: Agent, settings: AgentSettings, url: str) -> None:
    """Reports to one candidate; one that is out of reach does not delay the others."""
    client = HttpClient(url, timeout_s=settings.report_every_s, token=settings.hub_token)
    reached: bool | None = None
    while True:
        try:
            answer = await client.call("POST", "/report", msgspec.json.encode(agent.report()))
            agent.answered(msgspec.json.decode(answer, type=ReportAnswer))
        except (CallFailed, msgspec.MsgspecError, ValueError) as error:  # the last of what is no text
            if reached is not False:
                _log.warning("the hub's candidate %s is out of reach, the last plan holds: %s", url, error)
            reached = False
        else:
            if reached is not True:
                _log.info("the hub's candidate %s answers", url)
            reached = True
        await asyncio.sleep(settings.report_every_s)


def agent_routes(agent: Agent, engine: ProcessEngine) -> Routes:
    """What an agent answers."""

    def health(_body: bytes) -> bytes:
        """The epoch of the plan that holds, and whether no candidate of the hub answers; needs no token."""
        state = {"status": "ok", "site_id": agent.site_id, "epoch": agent.plan.epoch, "alone": agent.alone}
        return msgspec.json.encode(state)

    def plan(_body: bytes) -> bytes:
        """The plan that holds here; 503 before the first."""
        if agent.plan.epoch == 0:
            raise NotReady("There is no plan yet: no candidate of the hub has answered.", retry_after_s=5)
        return msgspec.json.encode(agent.plan)

    def load(body: bytes) -> bytes:
        """What a gateway has in flight; answered with servers, room and a newer plan."""
        return msgspec.json.encode(agent.answer(decode(body, LoadReport), engine.urls()))

    def replicas(_body: bytes) -> bytes:
        """Addresses of the ready replicas, by model."""
        return msgspec.json.encode(engine.urls())

    def decisions(_body: bytes) -> bytes:
        """Changed numbers of replicas, with reasons and bounds."""
        return msgspec.json.encode(merged({f"site/{agent.site_id}": agent.decisions.recent}))

    return {
        ("GET", "/healthz"): health,
        ("GET", "/decisions"): decisions,
        ("GET", "/plan"): plan,
        ("POST", "/load"): load,
        ("GET", "/replicas"): replicas,
    }


class AgentMetrics(Collector):
    """An agent's state, read when it is asked for.

    Args:
        agent: The agent.
        engine: What runs its replicas.
    """

    def __init__(self, agent: Agent, engine: ProcessEngine) -> None:
        self._agent = agent
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        agent = self._agent
        yield GaugeMetricFamily("sixfold:agent_epoch", "Epoch of the plan that holds.", value=agent.plan.epoch)
        yield GaugeMetricFamily(
            "sixfold:agent_alone", "1 while no candidate of the hub answers.", value=float(agent.alone)
        )
        yield CounterMetricFamily(
            "sixfold:agent_state_write_failures", "Plans that the disk refused.", value=agent.num_write_failures
        )
        labels = ("model", "accelerator", "state")
        replicas = GaugeMetricFamily("sixfold:agent_replicas", "Replicas that hold accelerators.", labels=labels)
        for item in self._engine.held():
            starting = item.num_active - item.num_ready
            for state, count in (("ready", item.num_ready), ("starting", starting), ("stopping", item.num_stopping)):
                replicas.add_metric((item.slot.model, item.slot.accelerator, state), count)
        yield replicas
