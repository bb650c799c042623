"""``sixfold hub`` and ``sixfold agent``: one configuration file each; imports nothing heavy."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from sixfold.core.cli.commands import add_log_arguments
from sixfold.core.hookspecs import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file with the part of the command's name; see docs/hub.md")
    add_log_arguments(parser)


def _run_hub(args: argparse.Namespace) -> int:
    from sixfold.core.telemetry.logs import configure_logging
    from sixfold.scaling.hub.config import HubSettings, load_section
    from sixfold.scaling.hub.service import run_hub

    settings = load_section(args.config, "hub", HubSettings)
    configure_logging(args.log_level, args.log_format)
    asyncio.run(run_hub(settings))
    return 0


def _run_agent(args: argparse.Namespace) -> int:
    from sixfold.core.telemetry.logs import configure_logging
    from sixfold.scaling.agent.config import AgentSettings
    from sixfold.scaling.agent.service import run_agent
    from sixfold.scaling.hub.config import load_section

    settings = load_section(args.config, "agent", AgentSettings)
    configure_logging(args.log_level, args.log_format)
    asyncio.run(run_agent(settings))
    return 0


HUB = Command(
    name="hub",
    summary="Plan replicas over many sites (one candidate of the hub).",
    configure=_configure,
    run=_run_hub,
)

AGENT = Command(
    name="agent",
    summary="Keep one site within the hub's plan, and within its last one when the hub is gone.",
    configure=_configure,
    run=_run_agent,
)
