"""The example plugins are installed as a stranger installs them, tested by their own pytest, and served over HTTP."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tokenize
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import DemoServer, start_server, stop_server

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
NAMES = sorted(folder.name for folder in PLUGINS.iterdir() if (folder / "pyproject.toml").exists())
MAX_LINES = 60
_PYTEST = ("-m", "pytest", "-p", "sixfold.core.testing.pytest_option", "-p", "no:cacheprovider", "-q")


@dataclass(frozen=True)
class Installed:
    """Where the packages are, and copies of their projects."""

    site: Path
    projects: Path

    @property
    def environ(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(self, name: str, *arguments: str) -> str:
        """What a Python of a stranger prints in the project's folder; fails if it fails."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.projects / name,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(PLUGINS, folder / "projects")
    packages = [str(folder / "projects" / name) for name in NAMES]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), *packages], check=True, capture_output=True)
    return Installed(folder / "site", folder / "projects")


def archive_of(folder: Path, target: Path) -> str:
    """A source of the plugin `archive` for a model's folder."""
    with tarfile.open(target, "w:gz") as archive:
        for file in folder.iterdir():
            archive.add(file, file.name)
    return f"archive:{target.as_uri()}#sha256={hashlib.sha256(target.read_bytes()).hexdigest()}"


def serve(installed: Installed, config: Path, models: Mapping[str, Any]) -> Iterator[DemoServer]:
    settings = {"models": dict(models), "server": {"port": 0}, "cache_dir": str(config.parent / "cache")}
    config.write_text(yaml.safe_dump(settings))
    server = start_server(config, installed.environ)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def near_server(installed: Installed, tmp_path: Path) -> Iterator[DemoServer]:
    """A stranger's family, whose files come from another stranger's source."""
    source = archive_of(PLUGINS / "hashing" / "model", tmp_path / "near.tar.gz")
    yield from serve(installed, tmp_path / "config.yaml", {"near": {"source": source}})


@pytest.fixture
def mood_server(installed: Installed, tmp_path: Path) -> Iterator[DemoServer]:
    installed.run("classify", "make_model.py")
    model = installed.projects / "classify" / "model"
    yield from serve(installed, tmp_path / "config.yaml", {"mood": {"source": f"file:{model}"}})


def ask(server: DemoServer, path: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def num_code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor nothing but a comment or a docstring."""
    text = path.read_text()
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in empty]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docs)


def test_there_is_a_family_a_modality_and_a_source() -> None:
    assert NAMES == ["archive", "classify", "hashing"]


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_has_at_most_60_lines_of_code(name: str) -> None:
    files = [path for path in (PLUGINS / name).rglob("sixfold_*/*.py")] + list((PLUGINS / name).glob("sixfold_*.py"))
    assert 0 < sum(map(num_code_lines, files)) <= MAX_LINES


@pytest.mark.slow
def test_a_strangers_family_is_conformant(installed: Installed) -> None:
    output = installed.run("hashing", *_PYTEST)
    assert "13 passed, 1 skipped" in output


@pytest.mark.slow
def test_a_strangers_source_is_conformant(installed: Installed, tmp_path: Path) -> None:
    source = archive_of(PLUGINS / "hashing" / "model", tmp_path / "near.tar.gz")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"models": {"near": {"source": source}}}))
    output = installed.run("archive", *_PYTEST, "--sixfold-plugin", "archive", "--sixfold-config", str(config))
    assert "13 passed" in output


def test_a_strangers_family_and_source_serve_over_http(near_server: DemoServer) -> None:
    texts = ["hospital admission", "Hospitl admision", "a red bicycle"]
    answer = ask(near_server, "/v1/embeddings", {"model": "near", "input": texts})
    meant, misspelt, other = (row["embedding"] for row in answer["data"])
    assert len(meant) == 512
    near, far = (sum(a * b for a, b in zip(meant, row, strict=True)) for row in (misspelt, other))
    assert near > 0.5 > far


@pytest.mark.slow
def test_a_strangers_modality_is_conformant(installed: Installed) -> None:
    installed.run("classify", "make_model.py")
    output = installed.run("classify", *_PYTEST)
    assert "15 passed, 1 skipped" in output


@pytest.mark.slow
def test_a_strangers_modality_serves_over_http(mood_server: DemoServer) -> None:
    answer = ask(mood_server, "/v1/classify", {"model": "mood", "input": ["so good", "bad day"]})
    assert [set(row) for row in answer["data"]] == [{"sad", "neutral", "glad"}] * 2
    assert all(abs(sum(row.values()) - 1) < 1e-5 for row in answer["data"])
    assert answer["usage"] == {"texts": 2}
