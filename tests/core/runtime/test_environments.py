"""The Python of a model's workers: named or built once, checked before anything loads, and running this installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from sixfold.core.config import ModelEntry, load_config
from sixfold.core.environment import EnvironmentEntry
from sixfold.core.errors import ConfigError
from sixfold.core.plugins import load_plugins
from sixfold.core.runtime.environments import build_environment, requirement_lines, resolve_environment
from sixfold.core.runtime.interpreter import WORKER_REQUIREMENTS, clean_environ, link_installation, other_interpreter

PLUGINS = load_plugins()
LLM = PLUGINS.families["llm/vllm"]


def silent(_what: str, _done: int, _total: int | None) -> None:
    """Shows no progress."""


def script(path: Path, text: str) -> Path:
    """An executable that is no Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def wheel(folder: Path, name: str) -> Path:
    """A wheel with one module, as small as pip takes them."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "answer = 42\n")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize(
    "given",
    [{}, {"python": "/p", "extra": "vllm"}, {"python": "/p", "requirements": ["a"]}, {"requirements": ["a\nb"]}],
)
def test_an_env_says_one_thing(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EnvironmentEntry.model_validate(given)


def test_an_env_needs_a_family_and_its_python_starts_at_the_folder_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("models: {m: {source: 'file:x', env: {python: venv/bin/python}}}")
    with pytest.raises(ConfigError, match="Set 'family'"):
        load_config(config, environ={})
    config.write_text("models: {m: {source: 'file:x', family: llm/vllm, env: {python: venv/bin/python}}}")
    env = load_config(config, environ={}).models["m"].env
    assert env == EnvironmentEntry(python=tmp_path / "venv" / "bin" / "python")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo '[[3, 9, 1], []]'", "is Python 3.9.1; workers need 3.11"),
        ('echo \'[[3, 12, 1], ["vllm", "yaml"]]\'', "lacks vllm, yaml, which the family 'llm/vllm' needs"),
        ("echo nonsense", "does not answer as a Python does (nonsense)"),
        ("true", "does not answer as a Python does (it says nothing)"),
    ],
)
def test_an_interpreter_that_does_not_fit_is_refused_with_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    python = script(tmp_path / "python", text)
    with pytest.raises(ConfigError) as failure:
        other_interpreter(python, LLM, PLUGINS, cache_dir=tmp_path / "cache", place="models.m.env.python")
    assert said in str(failure.value)
    assert str(failure.value).startswith("models.m.env.python: ")


def test_the_message_about_missing_packages_holds_the_command_that_brings_them(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'echo \'[[3, 12, 1], ["vllm", "yaml"]]\'')
    with pytest.raises(ConfigError, match=rf"Run: {python} -m pip install vllm pyyaml$"):
        other_interpreter(python, LLM, PLUGINS, cache_dir=tmp_path / "cache", place="p")


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no Python at {tmp_path}/gone"):
        other_interpreter(tmp_path / "gone", LLM, PLUGINS, cache_dir=tmp_path / "cache", place="p")


def test_a_file_that_can_not_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="can't be run"):
        other_interpreter(tmp_path / "text", LLM, PLUGINS, cache_dir=tmp_path / "cache", place="p")


def test_a_foreign_python_imports_this_installation_and_finds_its_plugins(tmp_path: Path) -> None:
    folder = link_installation(LLM, PLUGINS, tmp_path / "cache")
    code = (
        "import importlib.metadata, importlib.util, json\n"
        "core, llm = importlib.util.find_spec('sixfold.core'), importlib.util.find_spec('sixfold.plugins')\n"
        "points = importlib.metadata.entry_points(group='sixfold')\n"
        "names = sorted(p.name for p in points if p.dist.name == 'sixfold')\n"
        "print(json.dumps([core.submodule_search_locations[0], llm is not None, names]))"
    )
    # -S: without site-packages there is no installation but the linked one.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=clean_environ() | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    core, has_plugins, names = json.loads(done.stdout)
    assert has_plugins
    assert core == str(folder / "sixfold" / "core")
    assert (folder / "sixfold" / "core" / "config.py").samefile(Path(load_config.__code__.co_filename))
    assert "llm" in names


def test_the_same_installation_is_linked_once(tmp_path: Path) -> None:
    first = link_installation(LLM, PLUGINS, tmp_path)
    assert link_installation(LLM, PLUGINS, tmp_path) == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_another_python_does_not_inherit_this_ones_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("PYTHONHOME", "/mine")
    assert not {"PYTHONPATH", "PYTHONHOME"} & clean_environ().keys()
    assert clean_environ()["PATH"] == os.environ["PATH"]


def entry(**env: object) -> ModelEntry:
    """An entry with an environment."""
    return ModelEntry(name="m", source="file:x", family="llm/vllm", env=EnvironmentEntry.model_validate(env))


def test_an_extra_brings_its_requirements_and_those_of_every_worker_within_this_projects_bounds() -> None:
    lines = requirement_lines(entry(extra="vllm", requirements=["transformers<6"]), LLM, PLUGINS)
    assert any(line.startswith("vllm>=") for line in lines)
    assert lines[-1] == "transformers<6"
    assert all(any(line.startswith(name) for line in lines) for name in WORKER_REQUIREMENTS.values())
    assert not any("extra" in line for line in lines)


def test_an_extra_of_extras_is_resolved() -> None:
    lines = requirement_lines(entry(extra="all"), LLM, PLUGINS)
    assert any(line.startswith("diffusers") for line in lines)
    assert not any(line.startswith("sixfold") for line in lines)


def test_an_unknown_extra_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        requirement_lines(entry(extra="vlm"), LLM, PLUGINS)


def test_a_model_without_env_runs_in_the_servers_own_python(tmp_path: Path) -> None:
    plain = ModelEntry(name="m", source="file:x", family="llm/vllm")
    assert resolve_environment(plain, LLM, PLUGINS, tmp_path, silent) is None


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Builds an environment from local wheels alone."""

    def build_of(*requirements: str) -> Path:
        wheels = tmp_path / "wheels"
        return build_environment(
            ["--no-index", f"--find-links {wheels}", *requirements],
            tmp_path / "cache",
            what="environment of m",
            place="models.m.env",
            progress=silent,
        )

    return build_of


def test_an_environment_is_built_once_and_has_what_was_asked_for(
    tmp_path: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", "answers")
    python = build("answers")
    done = subprocess.run([python, "-c", "import answers; print(answers.answer)"], capture_output=True, text=True)
    assert done.stdout == "42\n"

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert build("answers") == python
    with pytest.raises(AssertionError):
        build("answers>=1")  # other requirements are another environment


def test_what_pip_says_is_told_and_half_an_environment_is_removed(tmp_path: Path, build: Callable[..., Path]) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(ConfigError, match=r"models\.m\.env: the environment can't be built") as failure:
        build("answers")
    assert "No matching distribution found for answers" in str(failure.value)
    assert [path.suffix for path in (tmp_path / "cache" / "environments").iterdir()] == [".lock"]
