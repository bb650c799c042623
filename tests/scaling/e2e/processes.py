"""Commands of ``sixfold`` as real processes of one machine, and the configurations of a hub and two sites."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

REPLICA = Path(__file__).with_name("tiny_replica.py")
TOKEN = "token-of-this-test-only"


class Processes:
    """Commands of ``sixfold`` over configuration files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, config: dict[str, Any]) -> None:
        """Hub and agent have a section of the file, a gateway has all of it."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config if command == "gateway" else {command: config}), encoding="utf-8")
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
    until_s = time.monotonic() + 150
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
