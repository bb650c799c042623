"""A real server of the demo models, as a user starts it: one process from the command line, talked to over HTTP."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.config import load_config
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry
from tests.servers import DemoServer, start_server, stop_server

ROOT = Path(__file__).resolve().parents[2]


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

    def start_server_of(config: Path, env: Mapping[str, str] | None = None, **how: Any) -> DemoServer:
        servers.append(start_server(config, env, **how))
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


def install_reverse(tmp_path: Path) -> tuple[Path, Path]:
    """Puts the example plugin into a folder for the import path; returns it and a model's files."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "reverse_plugin" / "sixfold_reverse", site / "sixfold_reverse")
    info = site / "sixfold_reverse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sixfold-reverse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sixfold]\nreverse = sixfold_reverse.plugin\n")
    files = tmp_path / "files"
    files.mkdir()
    (files / "reverse.json").write_text("{}")
    assert importlib.util.find_spec("sixfold_reverse") is None
    return site, files


@pytest.fixture
def reverse_server(tmp_path: Path, start_config: Callable[..., DemoServer]) -> DemoServer:
    """A server of the example plugin, which loads in a second."""
    site, files = install_reverse(tmp_path)
    config = tmp_path / "reverse.yaml"
    config.write_text(yaml.safe_dump({"models": {"mirror": {"source": f"file:{files}"}}, "server": {"port": 0}}))
    return start_config(config, env=os.environ | {"PYTHONPATH": str(site)})
