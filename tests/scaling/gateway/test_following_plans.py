"""A gateway takes plan and servers from the sites' agents, keeps both on disk, and goes on when nobody answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sixfold.core.errors import ConfigError
from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.agent.messages import LoadAnswer, LoadReport, ReadyReplica, SiteModel
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.hub.model import Lock, Plan, Route
from tests.scaling.gateway.scripted import NOTHING, Reply, RunningGateway, ScriptedReplica, run_gateway

PLAN = Plan(
    epoch=3,
    routes=tuple(
        Route(
            model="m", origin=origin, site_id=site, weight=float(site == "eu"), latency_s=0.0 if site == "eu" else 0.1
        )
        for origin in ("eu", "*")
        for site in ("eu", "us")
    ),
    locks=(Lock(model="locked", regions=("eu",)),),
)


def agent(site: str, *replicas: ScriptedReplica, plan: Plan | None = PLAN) -> ScriptedReplica:
    """A site's agent, that answers every report alike."""
    answer = LoadAnswer(
        site_id=site,
        region=site,
        plan=plan,
        replicas=tuple(ReadyReplica(model="m", url=replica.url) for replica in replicas),
        models=(SiteModel(model="m", num_ready=len(replicas), concurrency=100, num_in_flight=0),),
    )
    return ScriptedReplica(f"agent-{site}", Reply(parts=(msgspec.json.encode(answer),)))


def gateway_of(folder: Path, *agents: str, region: str = "eu", **more: Any) -> Gateway:
    plan = {"agents": agents, "state": folder / "gateway.json", "every_s": 0.02, "timeout_s": 5}
    settings = {
        "plan": plan,
        "region": region,
        "server": ServerSettings(port=0),
        "health": {"interval_s": 1000.0},
        **more,
    }
    return Gateway(GatewaySettings.model_validate(settings))


async def sites_of(gateway: RunningGateway, count: int = 6, model: str = "m") -> set[str]:
    return {(await gateway.ask_json({"model": model, "prompt": "p"}))["by"] for _ in range(count)}


async def test_requests_follow_the_plan_and_leave_a_site_that_is_lost_without_a_failure(tmp_path: Path) -> None:
    eu, us = ScriptedReplica("eu", models=("m", "locked")), ScriptedReplica("us", models=("m", "locked"))
    for replica in (eu, us):
        await replica.start()
    agents = [agent("eu", eu), agent("us", us)]
    for each in agents:
        await each.start()
    async with run_gateway(gateway_of(tmp_path, *(each.url for each in agents))) as gateway:
        assert await sites_of(gateway) == {"eu"}
        assert await sites_of(gateway, model="locked") == {"eu"}
        await eu.kill()
        await agents[0].kill()
        assert await sites_of(gateway) == {"us"}
        status, body, _headers = await gateway.ask({"model": "locked", "prompt": "p"})
        error = json.loads(body)["error"]
        assert status == 503 and "in the regions that it may enter (eu)" in error["message"]
        assert not [seen for seen in us.seen if b"locked" in seen.body]
        assert await gateway.metric("sixfold:gateway_site_requests_total", site="us") == 6
        told = await gateway.ask_json(path="/decisions", method="GET")
        assert {"site_share", "site"} == {each["what"] for each in told["data"]}
    for each in (us, agents[1]):
        await each.kill()


@pytest.mark.parametrize(("refused", "site"), [("", "us"), ("would_be_late", "eu")])
async def test_a_request_that_has_too_little_time_for_a_site_does_not_make_others_leave_it(
    tmp_path: Path, refused: str, site: str
) -> None:
    full = Reply(status=429, parts=(b"{}",), headers={"x-should-retry": "true", "x-refused": refused})
    eu, us = ScriptedReplica("eu", full, Reply(parts=(b'{"by": "eu"}',))), ScriptedReplica("us")
    for replica in (eu, us):
        await replica.start()
    agents = [agent("eu", eu), agent("us", us)]
    for each in agents:
        await each.start()
    async with run_gateway(gateway_of(tmp_path, *(each.url for each in agents))) as gateway:
        assert await sites_of(gateway, count=1) == {"us"}  # tried there, too
        assert await sites_of(gateway) == {site}
    for each in (eu, us, *agents):
        await each.kill()


async def test_a_gateway_that_starts_and_hears_nobody_goes_on_by_its_disk_and_holds_its_locks(tmp_path: Path) -> None:
    us = ScriptedReplica("us", models=("m", "locked"))
    await us.start()
    home = agent("us", us)
    await home.start()
    async with run_gateway(gateway_of(tmp_path, home.url)) as gateway:
        assert await sites_of(gateway) == {"us"}
    await home.kill()
    async with run_gateway(gateway_of(tmp_path, home.url)) as gateway:
        assert await sites_of(gateway) == {"us"}
        assert (await gateway.ask({"model": "locked", "prompt": "p"}))[0] == 503
        assert await gateway.metric("sixfold:gateway_plan_epoch") == 3
        assert await gateway.metric("sixfold:gateway_agent_reached", agent=home.url) == 0
    async with run_gateway(gateway_of(tmp_path, home.url, region="us")) as gateway:
        status, body, _headers = await gateway.ask({"model": "locked", "prompt": "p"})
        assert (status, json.loads(body)["error"]["code"]) == (421, "region_locked")
    await us.kill()


async def test_without_any_plan_yet_the_gateway_says_that_it_is_not_ready(tmp_path: Path) -> None:
    silent = ScriptedReplica("agent", NOTHING)
    replica = ScriptedReplica("a")
    for each in (silent, replica):
        await each.start()
    async with run_gateway(gateway_of(tmp_path, silent.url, replicas=[replica.url])) as gateway:
        status, body, _headers = await gateway.ask()
        assert status == 503 and "does not know yet which regions" in json.loads(body)["error"]["message"]
        status, body, _headers = await gateway.ask(path="/ready", method="GET")
        assert (status, json.loads(body)["status"]) == (503, "no_plan")
    for each in (silent, replica):
        await each.kill()


async def test_a_full_disk_costs_what_a_restart_would_know_and_nothing_now(tmp_path: Path) -> None:
    eu = ScriptedReplica("eu")
    await eu.start()
    home = agent("eu", eu)
    await home.start()
    (tmp_path / "gateway.json").mkdir()  # nothing can be written over a folder
    with pytest.raises(ConfigError, match="does not hold the last plan"):
        async with run_gateway(gateway_of(tmp_path, home.url)):
            pass
    (tmp_path / "gateway.json").rmdir()
    (tmp_path / ".gateway.json.new").mkdir()
    async with run_gateway(gateway_of(tmp_path, home.url)) as gateway:
        assert await sites_of(gateway) == {"eu"}
        assert await gateway.metric("sixfold:gateway_state_write_failures_total") >= 1
        (tmp_path / ".gateway.json.new").rmdir()
        async with asyncio.timeout(20):
            while not (tmp_path / "gateway.json").exists():
                await asyncio.sleep(0)
    for each in (home, eu):
        await each.kill()


async def test_an_agent_hears_of_the_load_and_says_only_what_is_newer(tmp_path: Path) -> None:
    slow = ScriptedReplica("eu", Reply(then="wait"))
    await slow.start()
    home = agent("eu", slow)
    await home.start()
    async with run_gateway(gateway_of(tmp_path, home.url)) as gateway:
        asking = asyncio.create_task(gateway.ask())
        await slow.wait_seen(1)
        await home.wait_seen(len(home.seen) + 2)
        report = msgspec.json.decode(home.seen[-1].body, type=LoadReport)
        assert (report.epoch, [load.num_in_flight for load in (*report.demand, *report.routed)]) == (3, [1, 1])
        slow.go.set()
        await asking
        await home.wait_seen(len(home.seen) + 2)
        assert msgspec.json.decode(home.seen[-1].body, type=LoadReport).demand == ()
    for each in (home, slow):
        await each.kill()
