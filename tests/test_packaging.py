"""The distribution holds every package of the tree, its types, and entry points that load."""

import importlib
import importlib.metadata
import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FIXED = ("core", "plugins", "scaling", "tests", "bench", "docs", "examples", "pyproject.toml", "README.md", "Makefile")
MODALITIES = ("llm", "embedding", "asr", "tts", "image", "video")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_top_level_names_are_those_that_were_agreed() -> None:
    assert [name for name in FIXED if not (ROOT / name).exists()] == []
    assert [name for name in MODALITIES if not (ROOT / "plugins" / name / "__init__.py").exists()] == []


def test_the_list_of_packages_is_the_tree_and_its_folders_of_data(project: dict[str, Any]) -> None:
    tops = [ROOT / top for top in ("core", "plugins", "scaling")]
    code = {file.parent for top in tops for file in top.rglob("__init__.py")}
    # Not named, setuptools would warn of each at every installation.
    patterns = ("playground/*", "templates/*/*")
    data = {file.parent for top in tops for pattern in patterns for file in top.rglob(pattern) if file.is_file()}
    found = [
        "sixfold." + ".".join(folder.relative_to(ROOT).parts)
        for folder in code | data
        if folder.name != "__pycache__" and folder.name.isidentifier()
    ]
    packages = project["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(found)
    assert set(patterns) <= set(project["tool"]["setuptools"]["package-data"]["*"])


def test_every_folder_with_code_is_a_package() -> None:
    folders = {file.parent for top in ("core", "plugins", "scaling") for file in (ROOT / top).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_types_are_shipped(project: dict[str, Any]) -> None:
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
    for name in ("sixfold.core", "sixfold.plugins", "sixfold.scaling"):
        (location,) = importlib.import_module(name).__path__
        assert (Path(location) / "py.typed").exists()


def test_the_files_of_the_playground_are_shipped_with_the_packages_beside_them(project: dict[str, Any]) -> None:
    assert "playground/*" in project["tool"]["setuptools"]["package-data"]["*"]
    packages = {name.removeprefix("sixfold.").replace(".", "/") for name in project["tool"]["setuptools"]["packages"]}
    folders = [
        str(path.parent.relative_to(ROOT)) for top in ("core", "plugins") for path in (ROOT / top).rglob("playground")
    ]
    assert folders
    assert set(folders) <= packages


def test_every_entry_point_loads(project: dict[str, Any]) -> None:
    declared: dict[str, str] = project["project"]["entry-points"]["sixfold"]
    assert set(MODALITIES) | {"sources", "gateway", "scaling"} == set(declared)
    installed = {point.name: point for point in importlib.metadata.entry_points(group="sixfold")}
    for name, target in declared.items():
        assert installed[name].value == target
        installed[name].load()


def test_the_command_is_installed(project: dict[str, Any]) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sixfold")
    assert script.value == project["project"]["scripts"]["sixfold"]
    assert callable(script.load())


def test_each_modality_has_an_extra_and_all_names_them_all(project: dict[str, Any]) -> None:
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    assert set(MODALITIES) <= set(extras)
    assert extras["all"] == [f"sixfold[{','.join(MODALITIES)}]"]


def test_plugin_modules_import_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from sixfold.core.plugins import load_plugins\n"
        "load_plugins()\n"
        "print([name for name in ('torch', 'transformers', 'litserve', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_torch_is_pinned_for_development() -> None:
    pins = (ROOT / "constraints-dev.txt").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in pins


def test_all_that_development_installs_is_pinned(project: dict[str, Any]) -> None:
    """One release of a stub package of somebody else turned main red overnight."""
    lines = (ROOT / "constraints-dev.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    groups: dict[str, list[str]] = project["dependency-groups"]
    waiting = [Requirement("sixfold[all]"), *map(Requirement, (*groups["dev"], *groups["fuzz"]))]
    optional = {canonicalize_name(Requirement(text).name) for text in groups["fuzz"]}
    if importlib.util.find_spec("mkdocs") is not None:  # only where the site is built
        waiting += map(Requirement, groups["docs"])
    seen: set[tuple[str, str]] = set()
    unpinned: list[str] = []
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in optional and importlib.util.find_spec(name) is None:  # what `make fuzz` installs
            unpinned += [name] * (name not in pins)
            continue
        for extra in {"", *wanted.extras} - {extra for seen_name, extra in seen if seen_name == name}:
            seen.add((name, extra))
            needs = map(Requirement, importlib.metadata.requires(name) or ())
            needed = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
            # torch's build for GPUs pins what it needs of NVIDIA itself; the one for CPUs needs nothing of it.
            waiting += [need for need in needed if not canonicalize_name(need.name).startswith(("cuda-", "nvidia-"))]
        version = importlib.metadata.version(name).split("+")[0]  # torch==2.13.0 also takes the CPU build
        if name != "sixfold" and pins.get(name) != version:
            unpinned.append(f"{name}=={version}")
    assert sorted(set(unpinned)) == []
