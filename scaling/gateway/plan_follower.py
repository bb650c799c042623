"""Keeps a gateway up to date with the hub's plan through the sites' agents, and with the last one when all of them are gone."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence

import msgspec

from sixfold.scaling.agent.messages import LoadAnswer
from sixfold.scaling.agent.state_file import StateFile
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.plan_settings import PlanSettings
from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.model import Plan
from sixfold.scaling.registry import ReplicaRecord

_LOG = logging.getLogger(__name__)


class SiteReplicas(msgspec.Struct, frozen=True, kw_only=True):
    """Where a site's replicas were when it was last heard of."""

    site_id: str
    region: str
    urls: tuple[str, ...] = ()


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway that starts and hears nobody goes on with."""

    plan: Plan = Plan()
    sites: tuple[SiteReplicas, ...] = ()


class _Agent:
    """One site's agent, as this gateway hears it. Owned by its follower."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.site_id = ""
        self.reached: bool | None = None


class PlanFollower:
    """Exchanges reports for plans and addresses with every agent. Used in one event loop.

    An agent that does not answer takes nothing away: the plan holds, and probes say which of its replicas live.

    Args:
        settings: Where agents are, and how often they are asked.
        geography: Told what was heard.
        publish: Told which replicas there are.
        on_unsaved: Called when the file can't be written.
    """

    def __init__(
        self,
        settings: PlanSettings,
        geography: Geography,
        publish: Callable[[Sequence[ReplicaRecord]], None],
        on_unsaved: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._geography = geography
        self._publish = publish
        self._on_unsaved = on_unsaved
        self._gateway_id = secrets.token_hex(8)
        self._file = StateFile(settings.state, Known())
        self._sites: dict[str, SiteReplicas] = {}
        self._saved = Known()
        self._saving = asyncio.Lock()
        self._agents = tuple(
            _Agent(HttpClient(url, timeout_s=settings.timeout_s, token=settings.token)) for url in settings.agents
        )

    @property
    def reached(self) -> dict[str, bool]:
        """Whether each agent answered last time, by its address."""
        return {agent.client.url: bool(agent.reached) for agent in self._agents}

    async def start(self) -> None:
        """Takes what is on the disk, then asks every agent once.

        Raises:
            ConfigError: The file holds something else.
        """
        self._saved = self._file.load()
        self._geography.offer(self._saved.plan)
        self._sites = {site.site_id: site for site in self._saved.sites}
        self._publish_sites()
        await asyncio.gather(*(self._exchange(agent) for agent in self._agents))
        await self._save()

    async def run(self) -> None:
        """Exchanges until it is cancelled; one agent that hangs does not delay the others."""
        async with asyncio.TaskGroup() as group:
            for agent in self._agents:
                group.create_task(self._keep_exchanging(agent))

    async def _keep_exchanging(self, agent: _Agent) -> None:
        while True:
            await asyncio.sleep(self._settings.every_s)
            await self._exchange(agent)
            await self._save()

    async def _exchange(self, agent: _Agent) -> None:
        report = self._geography.report(self._gateway_id, agent.site_id, home=agent is self._home())
        try:
            answer = await agent.client.call("POST", "/load", msgspec.json.encode(report))
            heard = msgspec.json.decode(answer, type=LoadAnswer)
        except (CallFailed, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if agent.reached is not False:
                _LOG.warning("the agent at %s is out of reach, the last plan holds: %s", agent.client.url, error)
            agent.reached = False
            return
        if agent.reached is not True:
            _LOG.info("the agent of %s answers", heard.site_id)
        agent.reached = True
        agent.site_id = heard.site_id
        if heard.plan is not None and self._geography.offer(heard.plan):
            _LOG.info("plan %d of %s holds", heard.plan.epoch, heard.plan.leader_id)
        self._geography.heard(heard)
        urls = tuple(sorted({replica.url for replica in heard.replicas}))
        site = SiteReplicas(site_id=heard.site_id, region=heard.region, urls=urls)
        if self._sites.get(site.site_id) != site:
            self._sites[site.site_id] = site
            self._publish_sites()

    def _home(self) -> _Agent:
        """Who is told the demand: the first that answers, so that it reaches the hub while any site does."""
        return next((agent for agent in self._agents if agent.reached), self._agents[0])

    def _publish_sites(self) -> None:
        self._publish(
            [
                ReplicaRecord(replica_id=url, url=url, region=site.region, site=site.site_id)
                for site in self._sites.values()
                for url in site.urls
            ]
        )

    async def _save(self) -> None:
        """Keeps what is known. A disk that refuses costs what a restart would know, and nothing now."""
        async with self._saving:  # agents answer at the same time, and the file is one
            known = Known(plan=self._geography.plan, sites=tuple(self._sites.values()))
            if known == self._saved:
                return
            try:
                await asyncio.to_thread(self._file.save, known)
            except OSError as error:  # tried again at the next exchange
                self._on_unsaved()
                _LOG.error("plan %d holds and is not on the disk, which refuses it: %s", known.plan.epoch, error)
            else:
                self._saved = known
