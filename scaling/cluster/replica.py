"""One replica of a model: a server process, the lease that tells gateways of it, and the hooks that its cluster calls."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict

from sixfold.core.config import Seconds
from sixfold.core.errors import SixfoldError
from sixfold.scaling.cluster.server_process import ServerProcess
from sixfold.scaling.registry import Registry, ReplicaRecord, lease
from sixfold.scaling.registry_settings import RegistryPlace, open_place, short_registry

NODE_IP = "SIXFOLD_NODE_IP"
"""Variable that a replica's configuration may name, as in ``host: ${SIXFOLD_NODE_IP}``: its machine's address."""

_HEALTH_TIMEOUT_S = 5.0


class ReplicaFailed(SixfoldError):
    """The replica must be replaced: its server ended or does not answer, or its lease was lost."""


class ReplicaSettings(BaseModel):
    """What every replica of a service is started with."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    config: str
    """The text of its server's configuration file."""

    registry: Annotated[RegistryPlace, BeforeValidator(short_registry)]
    """Where gateways find it: the file of a registry, or an etcd. A password in it is in the document that Ray keeps;
    ``password_file`` is read on each machine."""

    revision: str = ""
    """Published with its address: what a rollout tells old and new replicas apart by."""

    role: Literal["any", "prefill"] = "any"
    """Published with its address: ``prefill`` for those that compute prompts for others."""

    start_timeout_s: Seconds = 600.0
    """Longest start, the loading of the model included."""

    drain_s: Seconds = 60.0
    """How long a stopped replica has in all; the server's ``drain_timeout_s`` should be shorter, it tells clients why."""

    lease_s: Seconds = 2.0
    """How long gateways trust it without a sign of life."""


class Replica:
    """Holds a server up and its lease alive. Use within one event loop.

    Clients' bytes never pass here: gateways talk to the server's own port.

    Args:
        replica_id: Of its own; another start has another one.
        region: Where it runs.
        node_ip: Address of its machine, for the configuration that asks for it (`NODE_IP`).
        settings: Of the service.
        registry: Where it publishes itself; made of the settings unless given.
    """

    def __init__(
        self,
        replica_id: str,
        region: str,
        settings: ReplicaSettings,
        *,
        node_ip: str = "127.0.0.1",
        registry: Registry | None = None,
    ) -> None:
        self._replica_id = replica_id
        self._region = region
        self._settings = settings
        self._registry = registry or open_place(settings.registry, ttl_s=settings.lease_s)
        self._server = ServerProcess(settings.config, variables={NODE_IP: node_ip})
        self._stopping = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(timeout=_HEALTH_TIMEOUT_S, trust_env=False)

    @property
    def url(self) -> str:
        """Of its server, without a trailing slash."""
        return self._server.url

    async def start(self) -> None:
        """Returns when the server is up and published.

        Raises:
            ServerFailed: It does not come up.
        """
        url = await self._server.start(self._settings.start_timeout_s)
        published = asyncio.Event()
        record = ReplicaRecord(
            replica_id=self._replica_id,
            url=url,
            region=self._region,
            revision=self._settings.revision,
            role=self._settings.role,
        )
        self._holding = asyncio.create_task(self._hold(record, published))
        waiting = asyncio.create_task(published.wait())
        await asyncio.wait((self._holding, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._holding.done():
            await self._server.kill()
            self._holding.result()

    async def check(self) -> None:
        """Returns if all is well.

        Raises:
            ReplicaFailed: It must be replaced.
        """
        if not self._server.is_running:
            raise ReplicaFailed(f"The server has ended:\n{self._server.log}")
        if self._holding is None or self._holding.done():
            raise ReplicaFailed("The lease was lost: another process has published itself under this id.")
        try:
            response = await self._http.get(f"{self.url}/health")
        except httpx.TransportError as error:
            raise ReplicaFailed(f"The server does not answer: {type(error).__name__}: {error}") from error
        if not response.is_success:
            raise ReplicaFailed(f"The server is not well: {response.status_code} {response.text[:200]}")

    async def stop(self) -> None:
        """Takes the lease back, so that no more requests come, then lets those end that run."""
        self._stopping.set()
        if self._holding is not None:
            await asyncio.gather(self._holding, return_exceptions=True)
        await self._server.stop(self._settings.drain_s)
        await self._http.aclose()

    async def _hold(self, record: ReplicaRecord, published: asyncio.Event) -> None:
        async with lease(self._registry, record, ttl_s=self._settings.lease_s):
            published.set()
            await self._stopping.wait()
