"""A hub and two sites as real processes: they plan together, and the sites go on when the hub is killed."""

import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.cli import main
from tests.scaling.e2e.processes import Processes, agent_config, answers, call, hub_config, wait_until
from tests.scaling.hub.etcd_cluster import free_ports


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
    wait_until(
        lambda: (
            call(eu, "/plan")["epoch"] == call(hub, "/healthz")["epoch"]
            and "sixfold:hub_leads 1.0" in call(hub, "/metrics")
        ),
        processes,
        "eu has the plan of the hub that leads",
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{eu}/plan", timeout=5)
    assert refused.value.code == 401
    refused.value.close()

    processes.end("hub", signal.SIGKILL)
    wait_until(lambda: bool(call(eu, "/healthz")["alone"]), processes, "eu notices")
    epoch = call(eu, "/plan")["epoch"]
    assert ready(us) == 1

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
