"""The nodes of the simulated fleet: the product's hub, agent and routing table, around fakes of what they stand on."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.agent.agent import Agent
from sixfold.scaling.agent.demand import LocalDemand
from sixfold.scaling.agent.messages import GatewayLoad, LoadReport
from sixfold.scaling.agent.reconcile import Action, Held, Slot
from sixfold.scaling.agent.standing import Standing
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.hub.model import Capacity
from sixfold.scaling.hub.store import Fence, Lease, Stored, StoreUnavailable
from tests.scaling.hub.memory_store import MemoryStore
from tests.scaling.simulation.network import Network, Unreachable

ResultT = TypeVar("ResultT")
Log = Callable[[str], None]


class RemoteStore:
    """The store as one node reaches it."""

    def __init__(self, node: str, network: Network, store: MemoryStore) -> None:
        self._node, self._network, self._store = node, network, store
        self.dead = False
        self.pause_s = 0.0

    async def _call(self, handler: Callable[[], Awaitable[ResultT]]) -> ResultT:
        if self.dead:
            raise StoreUnavailable("this process is dead")
        try:
            return await self._network.call(self._node, "store", handler)
        except Unreachable as error:
            raise StoreUnavailable(str(error)) from None

    async def get(self, key: str) -> Stored | None:
        return await self._call(lambda: self._store.get(key))

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        # The machine stands still between its last look at the clock and the write.
        pause_s, self.pause_s = self.pause_s, 0.0
        await asyncio.sleep(pause_s)
        return await self._call(lambda: self._store.put(key, value, expected=expected, fence=fence, lease=lease))

    async def grant(self, ttl_s: float) -> Lease:
        return await self._call(lambda: self._store.grant(ttl_s))

    async def keep_alive(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.keep_alive(lease))

    async def revoke(self, lease: Lease) -> None:
        await self._call(lambda: self._store.revoke(lease))

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        return await self._call(lambda: self._store.watch(key, after=after, timeout_s=timeout_s))

    async def close(self) -> None:
        return None


class Disk:
    """What an agent saved; outlives it."""

    def __init__(self) -> None:
        self.saved = Standing()
        self.full = False

    def load(self) -> Standing:
        return self.saved

    def save(self, standing: Standing) -> None:
        if self.full:
            raise OSError("no space left on device")
        self.saved = standing


@dataclass
class _Replica:
    slot: Slot
    units: int
    ready_s: float
    gone_s: float | None = None


class SimulatedCluster:
    """A site's machines: replicas take time to start and to drain, and outlive the agent."""

    def __init__(self, num_units: int, rng: random.Random, clock: Callable[[], float]) -> None:
        self.num_units = num_units
        self._rng, self._clock = rng, clock
        self._replicas: list[_Replica] = []

    def capacities(self) -> tuple[Capacity, ...]:
        return (Capacity(accelerator="h100", num_units=self.num_units),)

    def held(self) -> tuple[Held, ...]:
        now_s = self._clock()
        self._replicas = [one for one in self._replicas if one.gone_s is None or one.gone_s > now_s]
        return tuple(
            Held(
                slot=slot,
                units=own[0].units,
                num_active=sum(one.gone_s is None for one in own),
                num_ready=sum(one.gone_s is None and one.ready_s <= now_s for one in own),
                num_stopping=sum(one.gone_s is not None for one in own),
            )
            for slot in sorted({one.slot for one in self._replicas})
            if (own := [one for one in self._replicas if one.slot == slot])
        )

    def act(self, action: Action) -> None:
        now_s = self._clock()
        for _ in range(action.num_replicas):
            self._replicas.append(_Replica(action.slot, action.units, now_s + self._rng.uniform(0.5, 3)))
        active = [one for one in self._replicas if one.slot == action.slot and one.gone_s is None]
        for replica in active[: max(0, -action.num_replicas)]:
            replica.gone_s = now_s + self._rng.uniform(0.1, 2)

    @property
    def num_used(self) -> int:
        return sum(item.units * (item.num_active + item.num_stopping) for item in self.held())

    def lose_all(self) -> None:
        self._replicas.clear()


class SimulatedGateway:
    """Clients of one origin: asks sites for plans, and sends requests by the product's own geography, on a clock of its own."""

    def __init__(
        self,
        origin: str,
        demand: dict[str, float],
        rng: random.Random,
        clock: Callable[[], float],
        *,
        locks: bool = True,
    ) -> None:
        self.origin, self.demand = origin, demand
        self.geography = Geography(
            origin, follows=locks, clock=clock, decisions=DecisionLog(clock), refusal_s=3, draw=rng.random
        )
        self.refused_s: dict[tuple[str, str], float] = {}
        self.num_failed = 0
        self.num_refused = 0

    def load_report(self, site_id: str, *, home: bool) -> LoadReport:
        demand = tuple(
            GatewayLoad(model=model, origin=self.origin, num_in_flight=count) for model, count in self.demand.items()
        )
        weights = {
            route.model: route.weight
            for route in self.geography.plan.routes
            if route.site_id == site_id and route.origin == self.origin
        }
        routed = tuple(
            GatewayLoad(model=model, origin=self.origin, num_in_flight=count * weights.get(model, 0.0))
            for model, count in self.demand.items()
        )
        return LoadReport(gateway_id=self.origin, demand=demand if home else (), routed=routed)


def make_agent(site_id: str, cluster: SimulatedCluster, disk: Disk, clock: Callable[[], float]) -> Agent:
    demand = LocalDemand({}, forget_s=10, window_s=5)
    return Agent(site_id, site_id, cluster, disk, demand, clock=clock, alone_after_s=8)


async def answer(value: ResultT) -> ResultT:
    return value
