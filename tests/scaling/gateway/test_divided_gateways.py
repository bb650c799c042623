"""Several gateways before one rollout: together they give the new revision the share that it shall have."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.divisions import take_divisions
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.registry import Division, Registry, RegistryUnavailable, ReplicaRecord, SqliteRegistry, lease
from sixfold.scaling.rollout.split import Splitter
from tests.scaling.gateway.scripted import RunningGateway, ScriptedReplica, run_gateway

DIVISION = Division(service="m", names=("m",), old="1", new="2", share=0.25)
NUM_GATEWAYS = 3
NUM_REQUESTS = 40


class BreakableRegistry(SqliteRegistry):
    """A registry whose file can be lost."""

    is_broken = False
    num_failed = 0

    def divisions(self) -> list[Division]:
        if self.is_broken:
            self.num_failed += 1
            raise RegistryUnavailable("the disk is gone")
        return list(super().divisions())


def settings(path: Path) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {"registry": {"path": path, "ttl_s": 2.0}, "server": ServerSettings(port=0), "health": {"interval_s": 1000.0}}
    )


async def start(stack: AsyncExitStack, registry: Registry, name: str, revision: str) -> ScriptedReplica:
    replica = ScriptedReplica(name)
    await replica.start()
    stack.push_async_callback(replica.kill)
    record = ReplicaRecord(replica_id=name, url=replica.url, revision=revision)
    await stack.enter_async_context(lease(registry, record, ttl_s=2.0))
    return replica


async def until_share(gateway: Gateway, share: float | None) -> None:
    async with asyncio.timeout(20):
        while (gateway.shares["m"].split.share if "m" in gateway.shares else None) != share:
            await asyncio.sleep(0)


@pytest.mark.parametrize("num_new", [1, 3])
async def test_however_many_gateways_and_replicas_there_are_the_new_revision_gets_its_share_of_all(
    tmp_path: Path, num_new: int
) -> None:
    registry = SqliteRegistry(tmp_path / "replicas.db")
    registry.divide("m", DIVISION)
    async with AsyncExitStack() as stack:
        await start(stack, registry, "old", "1")
        new = [await start(stack, registry, f"new{each}", "2") for each in range(num_new)]
        made = [Gateway(settings(tmp_path / "replicas.db"), registry=registry) for _ in range(NUM_GATEWAYS)]
        gateways: list[RunningGateway] = [await stack.enter_async_context(run_gateway(each)) for each in made]
        for number in range(NUM_REQUESTS):
            assert (await gateways[number % NUM_GATEWAYS].ask())[0] == 200
        got = sum(len(each.seen) for each in new)
        assert abs(got - DIVISION.share * NUM_REQUESTS) <= NUM_GATEWAYS


async def test_gateways_follow_a_share_that_rises_and_ends_and_keep_it_while_the_registry_is_lost(
    tmp_path: Path,
) -> None:
    registry = BreakableRegistry(tmp_path / "replicas.db")
    gateway = Gateway(settings(tmp_path / "replicas.db"), registry=registry)
    async with run_gateway(gateway):
        registry.divide("m", DIVISION)
        await until_share(gateway, 0.25)
        registry.divide("m", msgspec.structs.replace(DIVISION, share=0.5))
        await until_share(gateway, 0.5)
        registry.is_broken = True
        registry.divide("m", None)
        async with asyncio.timeout(20):
            while registry.num_failed < 2:
                await asyncio.sleep(0)
        assert gateway.shares["m"].split.share == 0.5
        registry.is_broken = False
        await until_share(gateway, None)


async def test_a_gateway_that_carries_the_rollout_out_divides_by_itself(tmp_path: Path) -> None:
    registry = SqliteRegistry(tmp_path / "replicas.db")
    registry.divide("m", DIVISION)
    gateway = Gateway(settings(tmp_path / "replicas.db"), registry=registry, divides=True)
    async with run_gateway(gateway):
        assert gateway.shares == {}


def test_what_has_not_changed_keeps_its_count() -> None:
    shares: dict[str, Splitter] = {}
    take_divisions(shares, [DIVISION])
    before = shares["m"]
    take_divisions(shares, [DIVISION])
    assert shares["m"] is before
    take_divisions(shares, [msgspec.structs.replace(DIVISION, new="3")])
    assert shares["m"].split.new == "3"
    take_divisions(shares, [])
    assert shares == {}
