"""Offers ``sixfold gateway``. Imports nothing heavy: the HTTP stack loads when the command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.cli.commands import add_log_arguments
from sixfold.core.errors import UsageError
from sixfold.core.hookspecs import Command, hookimpl


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="YAML file with 'replicas:' or 'registry:'; docs/gateway.md describes it"
    )
    parser.add_argument("--host", help="address to listen on (overrides the file)")
    parser.add_argument("--port", type=int, help="port to listen on (overrides the file)")
    add_log_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    try:
        from sixfold.scaling.gateway.command import run_gateway
    except ModuleNotFoundError as missing:
        raise UsageError(f"sixfold gateway needs {missing.name}: pip install 'sixfold[gateway]'.") from missing
    flags: dict[str, JsonValue] = {"host": args.host, "port": args.port}
    return run_gateway(args.config, flags=flags, log_level=args.log_level, log_format=args.log_format)


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """Offers the command."""
    register(Command(name="gateway", summary="Route requests to several servers.", configure=_configure, run=_run))
