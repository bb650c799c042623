"""``--log-format`` and ``--log-level`` of the commands that serve: each line is an object, or is for people."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sixfold.core.hookspecs import Command
from sixfold.core.telemetry.logs import LogFormat, configure_logging
from sixfold.scaling.hub.command import AGENT, HUB
from sixfold.scaling.up import site
from sixfold.scaling.up.command import COMMAND as UP
from tests.scaling.e2e.processes import agent_config, hub_config


@contextmanager
def fresh_root(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A process that has configured no logging yet; pytest's own handlers come back after it."""
    logger = logging.getLogger()
    level = logger.level
    with monkeypatch.context() as patched:
        patched.setattr(logger, "handlers", [])
        yield
    logger.setLevel(level)


def parsed(command: Command, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("command", [HUB, AGENT, UP], ids=lambda command: command.name)
def test_every_command_that_serves_takes_a_format_and_a_level(command: Command) -> None:
    args = parsed(command, "x.yaml", "--log-format", "json", "--log-level", "error")
    assert (args.log_format, args.log_level) == ("json", "error")
    assert parsed(command, "x.yaml").log_format == "text"


@pytest.mark.parametrize(("command", "runs"), [(HUB, "hub.service.run_hub"), (AGENT, "agent.service.run_agent")])
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_lines_of_hub_and_agent_are_of_the_format_that_was_asked_for(
    command: Command,
    runs: str,
    log_format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run(_settings: object) -> None:
        logging.getLogger("sixfold.x").info("not told")
        logging.getLogger("sixfold.x").warning("a line")

    monkeypatch.setattr(f"sixfold.scaling.{runs}", run)
    parts = {"hub": hub_config(1, tmp_path), "agent": agent_config("eu", 1, 2, tmp_path, 1)}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({command.name: parts[command.name]}))
    with fresh_root(monkeypatch):
        assert command.run(parsed(command, str(path), "--log-format", log_format, "--log-level", "warning")) == 0
    # Threads that other tests left may log beside it.
    lines = capsys.readouterr().err.splitlines()
    (line,) = (each for each in lines if "a line" in each)
    assert not any("not told" in each for each in lines)
    if log_format == "json":
        assert {"level": "warning", "message": "a line"}.items() <= json.loads(line).items()
    else:
        assert line.endswith("a line")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_progress_of_up_is_an_object_where_all_lines_are(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fresh_root(monkeypatch):
        configure_logging("info", log_format)
        site._tell("chat: 1 of 2 replicas")  # pyright: ignore[reportPrivateUsage]
    expected = "chat: 1 of 2 replicas"
    # Threads that other tests left may log beside it.
    (line,) = (each for each in capsys.readouterr().err.splitlines() if expected in each)
    assert (json.loads(line)["message"] if log_format == "json" else line.removeprefix("sixfold up: ")) == expected
