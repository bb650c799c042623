"""A model with roles on real servers: the agent, the gateway and what is published, with processes in place of Ray's actors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sixfold.scaling.cluster.engine import ServiceStatus
from sixfold.scaling.cluster.replica import Replica
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry_settings import RegistryPlace, open_place, place_of
from sixfold.scaling.up.agent import Agent
from sixfold.scaling.up.services import deployed
from sixfold.scaling.up.settings import Site, load_site
from tests.plugins.llm.conftest import write_model
from tests.scaling.gateway.scripted import RunningGateway, run_gateway

_WAIT_S = 240.0
_STEP_S = 0.25
WORDS = "patient ward fever chart nurse night pulse dose blood scan rest water light door hand".split()


class Processes:
    """A cluster of this machine; a service's replicas are server processes that publish themselves. Owned by one event loop."""

    def __init__(self, site: Site, place: RegistryPlace) -> None:
        self._site = site
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._starting: dict[asyncio.Task[None], Replica] = {}
        self.replicas: dict[str, list[Replica]] = {}

    async def settle(self) -> None:
        """Returns when what was said last is up."""
        await asyncio.sleep(0)
        await asyncio.gather(*self._starting)

    def run(self, counts: Mapping[str, int]) -> None:
        self._loop.call_soon_threadsafe(self._start, dict(counts))

    def status(self) -> Mapping[str, ServiceStatus]:
        return {
            service: ServiceStatus(state="RUNNING", message="", num_running=len(found))
            for service, found in self.replicas.items()
        }

    def _start(self, counts: Mapping[str, int]) -> None:
        for service, count in counts.items():
            found = self.replicas.setdefault(service, [])
            made = deployed(self._site, service, registry=self._place, replica_key=None, has_gpus=False)
            while len(found) < count:
                replica = Replica(f"{service}/{len(found)}", "", made.replicas)
                found.append(replica)
                self._starting[asyncio.create_task(replica.start())] = replica

    async def close(self) -> None:
        await self.settle()
        await asyncio.gather(*(replica.stop() for found in self.replicas.values() for replica in found))


class Sight:
    """What `sixfold.scaling.up.site.RunningSite` tells its agent of the gateway."""

    def __init__(self, site: Site, gateway: Gateway) -> None:
        self._site = site
        self._gateway = gateway

    def urls(self, service: str) -> Sequence[str]:
        which = self._site.services[service]
        return [
            each.record.url
            for each in self._gateway.fleet
            if each.up and each.serves(which.model) and each.record.role == which.role
        ]

    def num_held(self, service: str) -> int:
        return 0


def site_of(folder: Path) -> Site:
    model = {
        "source": f"file:{write_model(folder / 'model', 'llama-long')}",
        "options": {"dtype": "float32", "kv_cache_bytes": 4 << 20},
        "device": "cpu",
    }
    # No prompt may wait, so that a second prefill replica is wanted as soon as any does; of answers one replica bears all.
    roles = {"max_replicas": 3, "ttft_s": 1e-6, "inter_token_s": 10.0, "window_s": 4.0}
    disaggregation = {"prefill_tokens_per_s": 100.0, "kv_bytes_per_token": 100.0, "min_prompt_tokens": 16}
    cluster = {
        "services": {"tiny": {"roles": roles}},
        "gateway": {"disaggregation": disaggregation, "health": {"interval_s": 0.2}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"models": {"tiny": model}, "server": {"port": 0}, "cluster": cluster}))
    return load_site(path, environ={"SIXFOLD_CACHE_DIR": str(folder / "cache")})


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[tuple[RunningGateway, Agent, Processes, Sight]]:
    site, place = site_of(folder), place_of(str(folder / "replicas.db"))
    table = open_place(place, ttl_s=site.cluster.lease_s)
    gateway = Gateway(site.gateway(place, replica_key=None), registry=table, divides=True)
    processes, sight = Processes(site, place), Sight(site, gateway)
    async with run_gateway(gateway) as served, httpx.AsyncClient(trust_env=False) as http:
        agent = Agent(
            {"tiny": site.scaling("tiny")},
            *(processes, sight),
            clock=time.monotonic,
            http=http,
            decisions=gateway.decisions,
        )
        try:
            yield served, agent, processes, sight
        finally:
            await processes.close()


async def ask(gateway: RunningGateway, number: int) -> None:
    draw = random.Random(number)
    text = f"{number}: " + " ".join(draw.choices(WORDS, k=100))
    body: dict[str, Any] = {"model": "tiny", "prompt": text, "max_tokens": 4, "ignore_eos": True}
    answer = await gateway.ask_json(body)
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_prompts_that_wait_bring_a_second_prefill_replica_and_no_second_decode_replica(tmp_path: Path) -> None:
    async with asyncio.timeout(_WAIT_S), running(tmp_path) as (gateway, agent, processes, sight):
        await agent.step()
        await processes.settle()
        while not (sight.urls("tiny") and sight.urls("tiny-prefill")):
            await agent.step()
        assert {name: len(found) for name, found in processes.replicas.items()} == {"tiny": 1, "tiny-prefill": 1}
        number = 0
        while len(sight.urls("tiny-prefill")) < 2:
            requests = asyncio.gather(*(ask(gateway, number + each) for each in range(24)))
            while not (await asyncio.wait((requests,), timeout=_STEP_S))[0]:
                await agent.step()
            await requests
            number += 24
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="split") > 0
        told = await gateway.ask_json(path="/decisions", method="GET")
        (found,) = [each for each in told["data"] if each["what"] == "replicas"]
        assert (found["source"], found["from"], found["to"]) == ("tiny-prefill", 1, 2)
        assert "prompt tokens a second keep" in found["reason"]
        assert found["objective"].endswith("1..2 replicas, 3 of both roles")
        assert len(sight.urls("tiny")) == 1
