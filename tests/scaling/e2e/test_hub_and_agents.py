"""A hub and two sites as real processes: they plan together, and the sites go on when the hub is killed."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.cli import main
from tests.scaling.hub.etcd_cluster import free_ports

REPLICA = Path(__file__).with_name("tiny_replica.py")
TOKEN = "token-of-this-test-only"


class Processes:
    """Commands of ``sixfold`` over configuration files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, config: dict[str, Any]) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({command: config}), encoding="utf-8")
        with (self.folder / f"{name}.log").open("ab") as log:
            arguments = [
                sys.executable,
                "-c",
                "import sys; from sixfold.core.cli import main; sys.exit(main())",
                command,
                str(path),
            ]
            self._running[name] = subprocess.Popen(arguments, stdout=log, stderr=log)

    def end(self, name: str, how: signal.Signals) -> int:
        process = self._running.pop(name)
        process.send_signal(how)
        return process.wait(timeout=30)

    def end_all(self) -> None:
        for name in list(self._running):
            self.end(name, signal.SIGTERM)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    yield running
    running.end_all()


def call(port: int, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=data, headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read()
        return json.loads(text) if answer.headers["Content-Type"] == "application/json" else text.decode()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def wait_until(true: Callable[[], bool], processes: Processes, what: str) -> None:
    """Real processes have no clock to advance: this looks again until a deadline."""
    until_s = time.monotonic() + 45
    while time.monotonic() < until_s:
        try:
            if true():
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    pytest.fail(f"never: {what}\n{processes.logs()}")


def hub_config(port: int, folder: Path) -> dict[str, Any]:
    return {
        "hub_id": "hub-1",
        "port": port,
        "token": TOKEN,
        "store": {"sqlite": str(folder / "hub.db")},
        "sites": {
            "eu": {"region": "eu", "latencies_s": {"eu": 0.01}},
            "us": {"region": "us", "latencies_s": {"eu": 0.09}},
        },
        "models": {"chat": {"units": {"cpu": 1}}},
        "lead_ttl_s": 1.5,
        "plan_every_s": 1,
        "solve_s": 0.5,
        "hold_s": 3,
    }


def agent_config(site: str, port: int, hub_port: int, folder: Path, units: int) -> dict[str, Any]:
    return {
        "site_id": site,
        "region": site,
        "port": port,
        "token": TOKEN,
        "hubs": [f"http://127.0.0.1:{hub_port}"],
        "hub_token": TOKEN,
        "state": str(folder / f"{site}.json"),
        "accelerators": {"cpu": {"units": units}},
        "models": {"chat": {"command": [sys.executable, str(REPLICA), "{port}"], "stop_s": 2}},
        "report_every_s": 0.5,
        "alone_after_s": 2,
    }


def test_sites_go_on_when_the_hub_is_killed(processes: Processes) -> None:
    folder = processes.folder
    hub, eu, us = free_ports(3)

    def demand(num_in_flight: float, *, routed: float) -> None:
        """What the gateway in eu tells its home site."""
        load = {"model": "chat", "origin": "eu"}
        report = {
            "gateway_id": "gw",
            "demand": [{**load, "num_in_flight": num_in_flight}],
            "routed": [{**load, "num_in_flight": routed}],
        }
        call(eu, "/load", report)

    def ready(port: int) -> int:
        return len(call(port, "/replicas").get("chat", []))

    processes.start("hub", "hub", hub_config(hub, folder))
    processes.start("eu", "agent", agent_config("eu", eu, hub, folder, units=2))
    processes.start("us", "agent", agent_config("us", us, hub, folder, units=4))

    def near_then_far() -> bool:
        demand(3, routed=2)
        return (ready(eu), ready(us)) == (2, 1)

    wait_until(near_then_far, processes, "three replicas run as two in eu, which has no more, and one in us")
    epoch = call(hub, "/healthz")["epoch"]
    assert call(eu, "/plan")["epoch"] == epoch
    assert "sixfold:hub_leads 1.0" in call(hub, "/metrics")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{eu}/plan", timeout=5)
    assert refused.value.code == 401
    refused.value.close()

    processes.end("hub", signal.SIGKILL)
    wait_until(lambda: bool(call(eu, "/healthz")["alone"]), processes, "eu notices")
    assert (call(eu, "/plan")["epoch"], ready(us)) == (epoch, 1)

    def us_grows_alone() -> bool:
        call(us, "/load", {"gateway_id": "gw", "routed": [{"model": "chat", "origin": "eu", "num_in_flight": 9}]})
        return ready(us) == 2  # its ceiling: twice what was planned

    wait_until(us_grows_alone, processes, "us scales to its ceiling without a hub")

    orphans = call(eu, "/replicas")["chat"]
    processes.end("eu", signal.SIGKILL)
    wait_until(
        lambda: not any(map(answers, orphans)), processes, "no replica outlives its agent and holds what nobody counts"
    )
    processes.start("eu", "agent", agent_config("eu", eu, hub, folder, units=2))
    wait_until(lambda: ready(eu) >= 1, processes, "a restarted agent runs by the plan on its disk, without a hub")
    assert call(eu, "/healthz")["epoch"] == epoch
    assert "sixfold:agent_epoch" in call(eu, "/metrics")

    processes.start("hub", "hub", hub_config(hub, folder))

    def planned_again() -> bool:
        demand(5, routed=2)
        return call(hub, "/healthz")["epoch"] > epoch and ready(us) >= 3

    wait_until(planned_again, processes, "the hub comes back and plans from its store")
    assert processes.end("eu", signal.SIGTERM) == 0, processes.logs()
    assert processes.end("hub", signal.SIGTERM) == 0, processes.logs()


def test_a_wrong_configuration_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(config: dict[str, Any]) -> str:
        path = tmp_path / "hub.yaml"
        path.write_text(yaml.safe_dump({"hub": config}), encoding="utf-8")
        assert main(["hub", str(path)]) == 2
        return capsys.readouterr().err

    good = hub_config(1234, tmp_path)
    assert "Set token, or host to 127.0.0.1" in complaint({**good, "host": "0.0.0.0", "token": None})
    misspelt = complaint({**good, "lost_afer_s": 3})
    assert "hub.yaml:" in misspelt and "lost_after_s" in misspelt
    assert "no site is in mars" in complaint({**good, "models": {"chat": {"units": {"cpu": 1}, "regions": ["mars"]}}})
    assert "either sqlite: PATH or etcd" in complaint({**good, "store": {}})
    (tmp_path / "hub.yaml").write_text("agent: {}", encoding="utf-8")
    assert main(["hub", str(tmp_path / "hub.yaml")]) == 2
    assert "the key 'hub' must hold a mapping" in capsys.readouterr().err
