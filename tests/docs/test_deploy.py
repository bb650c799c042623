"""The files of deploy/ agree with each other and with the settings: paths, ports, users, probes, times to stop."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.config import load_config
from sixfold.core.serving.gate import ALWAYS_OPEN
from sixfold.core.serving.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "sixfold.service").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name."""
    parts = re.split(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT, flags=re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_builds_a_stage_that_exists_and_has_what_the_other_has(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["target"] in stages()
    assert service["image"] == f"sixfold:{service['build']['target']}"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_every_stage_runs_as_nobody_in_particular() -> None:
    for name, text in stages().items():
        if name != "build":
            assert re.findall(r"^USER (.*)$", text, flags=re.MULTILINE)[-1] == "10001:10001", name


def test_what_is_written_lies_in_volumes() -> None:
    volumes = [each.split(":")[1] for each in SERVICES["sixfold-cpu"]["volumes"] if not each.endswith(":ro")]
    assert volumes == ["/var/cache/sixfold", "/var/lib/sixfold"]
    written = re.findall(r"(?:HOME|HF_HOME|\w+_DIR)=(/\S+)", DOCKERFILE)
    assert len(written) == 5
    assert all(path.startswith("/var/cache/sixfold") for path in written)
    assert "VOLUME " + str(volumes).replace("'", '"') in DOCKERFILE
    assert all("=/var/cache/sixfold" in value for value in unit_values("Environment"))
    assert unit_values("CacheDirectory") == unit_values("StateDirectory") == ["sixfold"]


def test_the_checks_ask_routes_that_need_no_key() -> None:
    asked = set(re.findall(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE + (DEPLOY / "compose.yaml").read_text()))
    assert asked == {"/health", "/ready"}
    assert asked <= ALWAYS_OPEN


def test_stopping_waits_longer_than_draining() -> None:
    drain_s = ServerSettings().drain_timeout_s
    assert all(float(service["stop_grace_period"].removesuffix("s")) > drain_s for service in SERVICES.values())
    assert float(unit_values("TimeoutStopSec")[0]) > drain_s


def test_the_command_lines_are_ones_that_exist() -> None:
    from sixfold.core.cli import all_commands, build_parser
    from sixfold.core.plugins import load_plugins

    parser = build_parser(all_commands(load_plugins()))
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    (exec_start,) = unit_values("ExecStart")
    for arguments in (yaml.safe_load(command), exec_start.split()[1:]):
        assert parser.parse_args(arguments).command.name == "serve"


def test_the_extras_of_the_image_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert set(wanted.split(",")) <= set(extras)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", stages()["build"], flags=re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "sixfold.service"
    unit.write_text(UNIT.replace("/opt/sixfold/bin/sixfold", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "page", ["operations/docker", "operations/security", "operations/kubernetes", "migration/vllm"]
)
def test_the_configurations_of_a_page_are_valid(page: str, tmp_path: Path) -> None:
    from sixfold.scaling.up.settings import load_site

    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        path = tmp_path / "config.yaml"
        named = example.startswith("models:")
        path.write_text(example if named else f"models: {{chat: {{source: 'hf:a/b'}}}}\n{example}")
        load_config(path, environ={})
        if "cluster:" in example:
            load_site(path, environ={"SIXFOLD_CACHE_DIR": "/cache"})


def test_the_objects_of_the_page_for_kubernetes_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sixfold.core.cli import main

    text = (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^sixfold (manifests .*) > ", text, flags=re.MULTILINE)
    path = tmp_path / "config.yaml"
    path.write_text(example)
    assert main(command.replace("config.yaml", str(path)).split()) == 0
    kinds = [each["kind"] for each in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds.count("StatefulSet") == 2
