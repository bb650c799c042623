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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import shipped_demo
from tests.servers import DemoServer, start_server, stop_server

SCRIPTS = Path(__file__).with_name("scripts")
_INSTALL_TIMEOUT_S = 900
_ASK_TIMEOUT_S = 600

Answers = Mapping[str, Any]
Ask = Callable[..., Answers]


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
    """Runs a client's script: ``ask("with_litellm.py", "litellm==1.0")`` gives what it got for each cell.

    What a cell's code raised is its answer, as a text that begins with "error:".
    """
    cache: Any = request.config.cache
    folder = Path(cache.mkdir("clients"))

    def answers(script: str, *pins: str) -> Answers:
        command = _node(folder, script, pins) if script.endswith(".mjs") else _python(folder, script, pins)
        env = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        done = subprocess.run(
            [*command, clients_server.url],
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
            env=env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found: Answers = json.loads(done.stdout.splitlines()[-1])
        return found

    return answers


def _python(folder: Path, script: str, pins: Sequence[str]) -> list[str]:
    def build(home: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins], check=True, timeout=_INSTALL_TIMEOUT_S)

    home = _built(folder, script, pins, build)
    return [str(home / "bin" / "python"), str(SCRIPTS / script)]


def _node(folder: Path, script: str, pins: Sequence[str]) -> list[str]:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no Node on this machine")

    def build(home: Path) -> None:
        home.mkdir()
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        subprocess.run([npm, "install", "--silent", *pins], check=True, timeout=_INSTALL_TIMEOUT_S, cwd=home)

    home = _built(folder, script, pins, build)
    # Node looks for packages beside the script.
    return [node, str(shutil.copy(SCRIPTS / script, home / script))]


def _built(folder: Path, script: str, pins: Sequence[str], build: Callable[[Path], None]) -> Path:
    """Where these pins are installed; kept from run to run, and built anew when they change or a build broke off."""
    name = f"{Path(script).stem}-{hashlib.sha256(' '.join([sys.version, *pins]).encode()).hexdigest()[:12]}"
    home, is_done = folder / name, folder / f"{name}.done"
    if not is_done.exists():
        shutil.rmtree(home, ignore_errors=True)
        build(home)
        is_done.touch()
    return home
