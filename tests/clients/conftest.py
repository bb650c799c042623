"""One server of the demo, and for each client a Python (or Node) of its own with its own pins, built once.

The clients' pins conflict with each other and with ours, so each runs in a process of its own: a script of `scripts/` asks for
everything that the client can and prints, as JSON, what it got for each cell of the table in docs/clients.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.roster import Client
from tests.e2e.conftest import shipped_demo
from tests.servers import DemoServer, start_server, stop_server

SCRIPTS = Path(__file__).with_name("scripts")
_INSTALL_TIMEOUT_S = 900
_ASK_TIMEOUT_S = 600

Ask = Callable[[Client], Mapping[str, Any]]


@pytest.fixture(scope="session")
def clients_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """The demo as it ships, all six modalities, with reranking by similarity switched on."""
    data = shipped_demo()
    data["models"]["embed"]["options"] = {"rerank_by_similarity": True}
    path = tmp_path_factory.mktemp("clients") / "demo.yaml"
    path.write_text(yaml.safe_dump(data))
    server = start_server(path)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture(scope="session")
def ask(clients_server: DemoServer, request: pytest.FixtureRequest) -> Ask:
    """Runs a client's script and gives what it got for each cell.

    What a cell's code raised is its answer, as a text that begins with "error:".
    """
    cache: Any = request.config.cache
    folder = Path(cache.mkdir("clients"))

    def answers(client: Client) -> Mapping[str, Any]:
        command = _node(folder, client) if client.script.endswith(".mjs") else _python(folder, client)
        env = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        done = subprocess.run(
            [*command, clients_server.url],
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
            env=env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )
        print(done.stderr[-8000:], file=sys.stderr)  # shown with each test that fails
        assert done.returncode == 0
        found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return answers


def _python(folder: Path, client: Client) -> list[str]:
    def build(home: Path) -> None:
        # Our own pip serves them all, and only what a script imports is compiled: half the time of an installation.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "install", "--quiet", "--no-compile", *client.pins], check=True, timeout=_INSTALL_TIMEOUT_S
        )

    home = _built(folder, client, build)
    return [str(home / "bin" / "python"), str(SCRIPTS / client.script)]


def _node(folder: Path, client: Client) -> list[str]:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no Node on this machine")

    def build(home: Path) -> None:
        home.mkdir()
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        subprocess.run([npm, "install", "--silent", *client.pins], check=True, timeout=_INSTALL_TIMEOUT_S, cwd=home)

    home = _built(folder, client, build)
    shutil.copy(SCRIPTS / "cells.mjs", home)
    # Node looks for packages beside the script.
    return [node, str(shutil.copy(SCRIPTS / client.script, home))]


def _built(folder: Path, client: Client, build: Callable[[Path], None]) -> Path:
    """Where a client is installed; kept from run to run, and built anew when its pins change or a build broke off."""
    pins = hashlib.sha256(" ".join([sys.version, *client.pins]).encode()).hexdigest()[:12]
    home = folder / f"{Path(client.script).stem}-{pins}"
    is_done = home.with_suffix(".done")
    if not is_done.exists():
        shutil.rmtree(home, ignore_errors=True)
        build(home)
        is_done.touch()
    return home
