"""A real server of the demo models, as a user starts it: one process from the command line, talked to over HTTP."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.config import load_config
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry

ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoServer:
    """A running server.

    Attributes:
        url: Without a trailing slash.
        config: The file that it watches.
        process: Its main process.
    """

    url: str
    config: Path
    process: subprocess.Popen[str]


def start_server(config: Path, env: Mapping[str, str] | None = None) -> DemoServer:
    """Starts ``sixfold serve`` and returns when it has said that its models are up."""
    with (config.parent / "server.log").open("w") as log_file:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "sixfold"), "serve", str(config)],
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env={**(env or os.environ), "HF_HUB_OFFLINE": "1"},
        )
    # The timer ends a process that never becomes ready, and with it the reading of its output.
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
    finally:
        timer.cancel()
    log = (config.parent / "server.log").read_text()
    assert " on http://" in first, f"the server did not start:\n{log}"
    return DemoServer(url=first.rsplit(" on ", 1)[1].strip(), config=config, process=process)


def stop_server(server: DemoServer) -> int:
    """Sends SIGTERM and returns the exit status."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(timeout=60)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return status


def shipped_demo() -> dict[str, Any]:
    """The demo's configuration on a free port, with the sources of its own files made absolute."""
    data: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    data["server"]["port"] = 0
    for entry in data["models"].values():
        source = entry["source"]
        if isinstance(source, str) and source.startswith("file:"):
            entry["source"] = f"file:{ROOT / 'examples' / source.removeprefix('file:')}"
    return data


def demo_config(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _data: None) -> Path:
    """The demo's two text models, which load in seconds, in exact arithmetic."""
    data = shipped_demo()
    data["models"] = {name: data["models"][name] for name in ("chat", "embed")}
    data["models"]["chat"]["options"] = {"dtype": "float32"}
    change(data)
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="session")
def six_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """The demo as it ships, with all its models."""
    path = tmp_path_factory.mktemp("six") / "demo.yaml"
    path.write_text(yaml.safe_dump(shipped_demo()))
    server = start_server(path)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """One server for all tests of the session that do not stop it."""
    server = start_server(demo_config(tmp_path_factory.mktemp("demo")))
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture(scope="session")
def embedding_model_path(demo_server: DemoServer) -> Path:
    """The files of the demo's embedding model, as pulled."""
    settings = load_config(demo_server.config)
    resolved = resolve_entry(settings.models["embed"], load_plugins(), settings.cache_dir, lambda _w, _d, _t: None)
    return resolved.path


@pytest.fixture
def start_config() -> Iterator[Callable[..., DemoServer]]:
    """Starts further servers from their own configuration files; they are stopped after the test."""
    servers: list[DemoServer] = []

    def start_server_of(config: Path, env: Mapping[str, str] | None = None) -> DemoServer:
        servers.append(start_server(config, env))
        return servers[-1]

    yield start_server_of
    for server in servers:
        stop_server(server)


@pytest.fixture
def start(tmp_path: Path, start_config: Callable[..., DemoServer]) -> Callable[..., DemoServer]:
    """Starts a server with a changed demo configuration; it is stopped after the test."""

    def start_changed(change: Callable[[dict[str, Any]], None] = lambda _data: None) -> DemoServer:
        return start_config(demo_config(tmp_path, change))

    return start_changed


@pytest.fixture
def reverse_server(tmp_path: Path, start_config: Callable[..., DemoServer]) -> DemoServer:
    """A server of the example plugin, which loads in a second."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "reverse_plugin" / "sixfold_reverse", site / "sixfold_reverse")
    info = site / "sixfold_reverse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sixfold-reverse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sixfold]\nreverse = sixfold_reverse.plugin\n")
    files = tmp_path / "files"
    files.mkdir()
    (files / "reverse.json").write_text("{}")
    config = tmp_path / "reverse.yaml"
    config.write_text(yaml.safe_dump({"models": {"mirror": {"source": f"file:{files}"}}, "server": {"port": 0}}))
    assert importlib.util.find_spec("sixfold_reverse") is None
    return start_config(config, env=os.environ | {"PYTHONPATH": str(site)})
