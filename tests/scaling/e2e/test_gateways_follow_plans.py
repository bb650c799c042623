"""Hub, two sites and two gateways as real processes: nobody misses the hub, and a lost site costs no replayable request."""

import json
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.scaling.e2e.processes import REPLICA, TOKEN, Processes, agent_config, call, hub_config, wait_until
from tests.scaling.hub.etcd_cluster import free_ports

MODELS = {
    "chat": {"units": {"cpu": 1}, "min_replicas": 2, "min_sites": 2},
    "notes": {"units": {"cpu": 1}, "regions": ["eu"], "min_replicas": 1},
}
NUM_CLIENTS = 6


def site_config(site: str, port: int, hub: int, folder: Path) -> dict[str, Any]:
    def replica(model: str) -> dict[str, Any]:
        command = [sys.executable, str(REPLICA), "{port}", site, model]
        return {"command": command, "concurrency": 100, "stop_s": 2}

    return {**agent_config(site, port, hub, folder, units=3), "models": {name: replica(name) for name in MODELS}}


def gateway_config(region: str, port: int, agents: tuple[int, ...], folder: Path) -> dict[str, Any]:
    urls = [f"http://127.0.0.1:{each}" for each in agents]
    plan = {"agents": urls, "token": TOKEN, "state": str(folder / f"gateway-{region}.json"), "every_s": 0.3}
    return {"region": region, "plan": plan, "server": {"port": port}, "routing": {"policy": "power_of_two"}}


def ask(port: int, model: str) -> str:
    """Where a completion was served, or the status and code of its refusal."""
    body = json.dumps({"model": model, "prompt": "x"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(json.load(answer)["site"])
    except urllib.error.HTTPError as refusal:
        with refusal:
            return f"{refusal.code} {json.load(refusal)['error']['code']}"


def test_a_site_that_is_lost_under_load_without_a_hub_costs_no_request(processes: Processes) -> None:
    folder = processes.folder
    hub, eu, us, gateway_eu, gateway_us = free_ports(5)
    processes.start("hub", "hub", {**hub_config(hub, folder), "models": MODELS})
    processes.start("eu", "agent", site_config("eu", eu, hub, folder))
    processes.start("us", "agent", site_config("us", us, hub, folder))
    processes.start("gateway-eu", "gateway", gateway_config("eu", gateway_eu, (eu, us), folder))
    processes.start("gateway-us", "gateway", gateway_config("us", gateway_us, (us, eu), folder))
    served = {(gateway_eu, "chat"): "eu", (gateway_us, "chat"): "us", (gateway_eu, "notes"): "eu"}
    wait_until(
        lambda: all(ask(port, model) == site for (port, model), site in served.items()),
        processes,
        "each gateway sends chats to its own site, and notes to where they are locked",
    )
    assert ask(gateway_us, "notes") == "421 region_locked"

    processes.end("hub", signal.SIGKILL)
    done, is_lost = threading.Event(), threading.Event()

    def client(_number: int) -> list[tuple[bool, str]]:
        found: list[tuple[bool, str]] = []
        while not done.is_set():
            found.append((is_lost.is_set(), ask(gateway_eu, "chat")))
        return found

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(NUM_CLIENTS)]
        try:
            wait_until(lambda: call(eu, "/replicas") != {}, processes, "the load has begun")
            processes.end("eu", signal.SIGKILL)  # its replicas end with it
            is_lost.set()
            wait_until(lambda: [ask(gateway_eu, "chat") for _ in range(5)] == ["us"] * 5, processes, "us serves")
            assert ask(gateway_eu, "notes").startswith("503"), "locked requests don't leave, though us has room"
        finally:
            done.set()
        answers = [answer for each in clients for answer in each.result()]
    after = Counter(where for was_lost, where in answers if was_lost)
    assert {where for _was_lost, where in answers} <= {"eu", "us"}, Counter(answers)
    assert after["us"] > after["eu"]

    processes.end("gateway-eu", signal.SIGKILL)
    processes.start("gateway-eu", "gateway", gateway_config("eu", gateway_eu, (eu, us), folder))
    wait_until(lambda: ask(gateway_eu, "chat") == "us", processes, "a restarted gateway goes on by its disk and us")
    assert ask(gateway_eu, "notes").startswith("503")
