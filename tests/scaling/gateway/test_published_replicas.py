"""Replicas that come and go by lease: the gateway follows, and survives a broken registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.registry import RegistryUnavailable, ReplicaRecord, Row, SqliteRegistry, lease
from tests.scaling.gateway.scripted import RunningGateway, ScriptedReplica, run_gateway


class BreakableRegistry(SqliteRegistry):
    """A registry whose file can be lost."""

    is_broken = False
    num_failed = 0

    def rows(self) -> Sequence[Row]:
        if self.is_broken:
            self.num_failed += 1
            raise RegistryUnavailable("the disk is gone")
        return super().rows()


def settings(path: Path, *, ttl_s: float = 0.2) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {"registry": {"path": path, "ttl_s": ttl_s}, "server": ServerSettings(port=0), "health": {"interval_s": 1000.0}}
    )


async def until(gateway: RunningGateway, status: int) -> None:
    async with asyncio.timeout(20):
        while (await gateway.ask())[0] != status:
            await asyncio.sleep(0)


def record(replica: ScriptedReplica) -> ReplicaRecord:
    return ReplicaRecord(replica_id=replica.name, url=replica.url)


async def test_a_replica_serves_while_its_lease_holds_and_no_longer(tmp_path: Path) -> None:
    registry = SqliteRegistry(tmp_path / "replicas.db")
    replica = ScriptedReplica("a")
    await replica.start()
    async with run_gateway(Gateway(settings(tmp_path / "replicas.db"), registry=registry)) as gateway:
        async with lease(registry, record(replica), ttl_s=0.2):
            await until(gateway, 200)
        await until(gateway, 503)
        async with asyncio.timeout(20):
            while (await gateway.ask())[0] != 200:
                registry.publish(record(replica))  # by a process that then dies: it does not renew
        await until(gateway, 503)
    await replica.kill()


async def test_a_replica_that_the_registry_knows_and_the_gateway_can_not_reach_costs_no_request(tmp_path: Path) -> None:
    """A partition that is seen from one side only."""
    near, beyond = ScriptedReplica("near"), ScriptedReplica("beyond")
    registry = SqliteRegistry(tmp_path / "replicas.db")
    for replica in (near, beyond):
        await replica.start()
    await beyond.kill()
    async with AsyncExitStack() as stack:
        for replica in (near, beyond):
            await stack.enter_async_context(lease(registry, record(replica), ttl_s=60.0))
        patient = settings(tmp_path / "replicas.db", ttl_s=60.0)
        gateway = await stack.enter_async_context(run_gateway(Gateway(patient, registry=registry)))
        for _ in range(4):
            assert (await gateway.ask_json())["by"] == "near"
        states = (await gateway.ask_json(path="/ready", method="GET"))["replicas"]
        assert states == {"near": "up", "beyond": "down"}
    await near.kill()


async def test_with_the_registry_gone_or_wrong_the_known_replicas_serve_on(tmp_path: Path) -> None:
    registry = BreakableRegistry(tmp_path / "replicas.db")
    replica = ScriptedReplica("a")
    await replica.start()
    async with run_gateway(Gateway(settings(tmp_path / "replicas.db"), registry=registry)) as gateway:
        registry.publish(ReplicaRecord(replica_id="nonsense", url="no address at all"))
        async with lease(registry, record(replica), ttl_s=0.2):
            await until(gateway, 200)
            registry.is_broken = True
            while registry.num_failed < 8:  # twice the lease's time: that no renewal is seen is not the replica's fault
                assert (await gateway.ask())[0] == 200
            assert await gateway.metric("sixfold:gateway_registry_failures_total") >= 8
            registry.is_broken = False
    await replica.kill()
