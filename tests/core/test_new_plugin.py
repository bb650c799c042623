"""``sixfold new-plugin`` writes packages that work as they are."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.resources
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sixfold.core.cli import main
from sixfold.core.cli.new_plugin import CORE_PATHS, NEW, SKELETONS, run, skeleton_files
from sixfold.core.errors import UsageError
from sixfold.core.hookspecs import Plugin
from sixfold.core.plugins import Plugins, load_plugins, new_manager
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import FakeDirectory
from tests.core.testing import flawed_plugin as flawed

_QUIET = ("-p", "sixfold.core.testing.pytest_option", "-p", "no:cacheprovider", "-q")
RUFF = Path(sys.executable).with_name("ruff")


def new_plugin(folder: Path, name: str, modality: str) -> int:
    return main(["new-plugin", name, "--modality", modality, "--path", str(folder)])


def test_there_is_a_skeleton_for_every_modality_and_for_a_new_one() -> None:
    assert set(SKELETONS) == {*load_plugins().apis, NEW}
    templates = importlib.resources.files("sixfold.core.cli") / "templates"
    assert {folder.name for folder in templates.iterdir()} == {"common", *SKELETONS}


@pytest.mark.parametrize("modality", SKELETONS)
def test_a_skeleton_is_formatted_and_has_no_word_left_to_fill_in(modality: str, tmp_path: Path) -> None:
    assert new_plugin(tmp_path, "my-own", modality) == 0
    for path in (tmp_path / "my-own").rglob("*"):
        if path.is_file():
            assert "$" not in path.read_text(), path
        if path.suffix == ".py":
            ast.parse(path.read_text())
    project = tomllib.loads((tmp_path / "my-own" / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["sixfold"] == {"my-own": "sixfold_my_own.plugin:PLUGIN"}
    assert list(yaml.safe_load((tmp_path / "my-own" / "config.yaml").read_text())["models"]) == ["my-own"]
    subprocess.run(
        [RUFF, "format", "--check", "--isolated", "--no-cache", "--line-length=120", tmp_path],
        check=True,
        capture_output=True,
    )


def test_it_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_plugin(tmp_path, "my-own", "embedding")
    printed = capsys.readouterr().out
    for step in (f"cd {tmp_path / 'my-own'}", "pip install -e '.[test]'", "pytest", "sixfold serve config.yaml"):
        assert step in printed


@pytest.mark.parametrize("name", ["My-own", "my_own", "-own", "own-", "my--own", "1st", "", "ö", "../own", "x" * 41])
def test_a_bad_name_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-plugin", "--modality", "new", "--path", str(tmp_path), "--", name]) == 2
    assert "is no name for a plugin: it has small letters" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new_plugin(tmp_path, "tts", "tts") == 2
    assert "The plugin 'tts' is installed (sixfold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "modality", "words"),
    [
        ("kokoro", "tts", "The plugin 'tts' has a family 'tts/kokoro'. Choose another name."),
        ("transformers", "llm", "has a family 'llm/transformers'"),
        ("image", "new", "is installed"),
        ("rerank", "new", "The plugin 'embedding' serves /v1/rerank, the route that the plugin would have."),
        ("models", "new", "Sixfold itself serves /v1/models"),
    ],
)
def test_a_name_that_something_has_which_the_plugin_would_bring_is_refused(
    name: str, modality: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new_plugin(tmp_path, name, modality) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my-own").mkdir()
    assert new_plugin(tmp_path, "my-own", "new") == 2
    assert "is there already. Choose another name" in capsys.readouterr().err
    assert list((tmp_path / "my-own").iterdir()) == []


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert new_plugin(tmp_path / "file", "my-own", "new") == 2
    assert "can't be written" in capsys.readouterr().err


def test_a_wheel_would_hold_every_template() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns: dict[str, Any] = project["tool"]["setuptools"]["package-data"]
    assert "templates/*/*" in patterns["*"]
    root = importlib.resources.files("sixfold.core.cli") / "templates"
    assert all(file.name.endswith(".txt") for folder in root.iterdir() for file in folder.iterdir())


@pytest.mark.slow
def test_a_type_checker_finds_nothing_in_what_is_written(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    sources = tmp_path / "sources"
    (sources / "sixfold").mkdir(parents=True)
    for part in ("core", "plugins", "scaling"):
        (sources / "sixfold" / part).symlink_to(root / part)
    written = [f"my-{modality}" for modality in SKELETONS]
    for name, modality in zip(written, SKELETONS, strict=True):
        new_plugin(tmp_path, name, modality)
        (package,) = (tmp_path / name).glob("sixfold_*")
        shutil.move(package, sources)
    options = ("--strict", "--explicit-package-bases", "--follow-imports=silent", "--ignore-missing-imports")
    places = ("--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *places, *sorted(map(str, sources.glob("sixfold_*")))],
        env={**os.environ, "MYPYPATH": str(sources)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def installed_without_extras() -> set[str]:
    """The distributions that `pip install sixfold` brings, canonical names."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in seen and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            seen.add(name)
            waiting += map(Requirement, importlib.metadata.requires(name) or ())
    return seen


def absent_without_extras() -> set[str]:
    """The modules of this environment that would not be there."""
    brought = {*installed_without_extras(), "sixfold"}
    owners = importlib.metadata.packages_distributions().items()
    return {module for module, names in owners if brought.isdisjoint(map(canonicalize_name, names))}


@pytest.mark.parametrize("modality", SKELETONS)
def test_a_skeleton_names_what_its_model_imports(modality: str) -> None:
    files = skeleton_files("my-own", modality)
    tree = ast.parse(files["sixfold_my_own/model.py"])
    parts = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    parts += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules = {part.partition(".")[0] for part in parts} - sys.stdlib_module_names
    named = tomllib.loads(files["pyproject.toml"])["project"]["dependencies"]
    distributions = {Requirement(text).name for text in named}
    assert modules <= {"PIL" if name == "pillow" else name for name in distributions} | {"sixfold_my_own"}


def test_a_plugin_that_asks_for_no_extra_has_its_http_face_without_any() -> None:
    absent = absent_without_extras()
    assert {"torch", "PIL"} <= absent
    apis = load_plugins().apis
    frugal = {modality for modality, skeleton in SKELETONS.items() if skeleton.requirements == ("sixfold",)}
    assert frugal == {"embedding", "llm", NEW}
    faces = [apis[modality].factory.partition(":")[0] for modality in frugal - {NEW}]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {', '.join(faces)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("modality", SKELETONS)
def test_a_new_plugin_is_conformant_as_it_is(modality: str, tmp_path: Path) -> None:
    new_plugin(tmp_path, "my-own", modality)
    project, site = tmp_path / "my-own", tmp_path / "site"
    copy = shutil.copytree(project, tmp_path / "copy")
    if SKELETONS[modality].requirements == ("sixfold",):
        absent = absent_without_extras() - {"pytest", "_pytest", "pluggy", "iniconfig", "pygments", "packaging"}
        (project / "conftest.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(copy)], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *_QUIET],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    num_skipped = 0 if modality in ("llm", "asr", "tts", "image") else 1  # the others have no stream
    assert f"{13 - num_skipped} passed" in done.stdout


def test_all_files_of_a_new_plugin_are_known_by_its_readme() -> None:
    for modality in SKELETONS:
        files = skeleton_files("my-own", modality)
        readme = files["README.md"]
        names = {Path(place).name for place in files if place.startswith("sixfold_my_own/")} - {"__init__.py"}
        assert all(name in readme for name in names)


@pytest.mark.parametrize("name", ["on", "no", "null"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(name: str) -> None:
    config = yaml.safe_load(skeleton_files(name, "embedding")["config.yaml"])
    assert list(config["models"]) == [name]


def test_a_readme_tells_of_no_file_that_is_not_there_and_of_what_to_bring() -> None:
    assert "messages.py" not in skeleton_files("my-own", "asr")["README.md"]
    assert "bring a recording of your own: speech.wav" in skeleton_files("my-own", "asr")["README.md"]
    assert "bring" not in skeleton_files("my-own", "tts")["README.md"]


def test_the_name_of_a_modality_is_refused_for_a_new_one(tmp_path: Path) -> None:
    manager = new_manager()
    manager.register(Plugin(apis=[flawed.api()]), name="outside")
    args = argparse.Namespace(name="speaking", modality=NEW, path=tmp_path)
    with pytest.raises(UsageError, match="The plugin 'outside' serves a modality 'speaking'"):
        run(Plugins(manager), args)


def test_the_routes_that_every_server_has_are_known(tmp_path: Path) -> None:
    settings = ServerSettings(data_dir=tmp_path, playground=False)
    server = SixfoldServer([flawed.SpeakingAPI()], FakeDirectory(), settings)
    one_word = {path for path in server.app.openapi()["paths"] if path.startswith("/v1/") and path.count("/") == 2}
    assert one_word - {"/v1/say"} == CORE_PATHS
