"""A model whose worker runs in another Python than the server, and one whose Python is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import install_reverse
from tests.servers import DemoServer


@pytest.fixture
def foreign_python(tmp_path: Path) -> Path:
    """A venv that has this environment's libraries, but neither Sixfold nor the example."""
    venv = tmp_path / "foreign"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    spec = importlib.util.find_spec("msgspec")
    assert spec is not None
    assert spec.origin is not None
    (site / "libraries.pth").write_text(f"{Path(spec.origin).parents[1]}\n")
    python = venv / "bin" / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    bare = subprocess.run([python, "-c", "import sixfold.core"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert "No module named 'sixfold" in bare.stderr
    return python


def test_a_model_is_served_by_another_python_and_a_missing_one_hurts_nobody_else(
    tmp_path: Path, foreign_python: Path, start_config: Callable[..., DemoServer]
) -> None:
    site, files = install_reverse(tmp_path)
    mirror: dict[str, Any] = {"source": f"file:{files}", "family": "reverse/letters"}
    config = tmp_path / "reverse.yaml"
    models = {
        "foreign": mirror | {"env": {"python": str(foreign_python)}},
        "lost": mirror | {"env": {"python": "/nowhere/bin/python"}},
        "own": mirror,
    }
    cache_dir = str(tmp_path / "cache")
    config.write_text(yaml.safe_dump({"models": models, "server": {"port": 0}, "cache_dir": cache_dir}))
    server = start_config(config, env=os.environ | {"PYTHONPATH": str(site)})

    def reverse(model: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/reverse", json={"model": model, "text": "stressed"})

    assert reverse("foreign").json()["text"] == "desserts"
    assert reverse("own").json()["text"] == "desserts"
    assert reverse("lost").status_code == 503
    assert "models.lost.env.python: no Python at /nowhere/bin/python" in server.log
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode() for pid in children]
    # Folders: one interpreter has several names in its own.
    folders = sorted(Path(command).parent for command in commands)
    assert folders == sorted([foreign_python.parent, Path(sys.executable).parent])
