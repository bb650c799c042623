"""``sixfold up``; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.cli.commands import add_log_arguments
from sixfold.core.errors import UsageError
from sixfold.core.hookspecs import Command

_NEEDS = "sixfold up needs {name}: pip install 'sixfold[ray,gateway]'."


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sixfold up``."""
    parser.add_argument("config", type=Path, help="YAML file as of 'sixfold serve', with or without 'cluster:'")
    parser.add_argument("--host", help="address to listen on (overrides the file)")
    parser.add_argument("--port", type=int, help="port to listen on (overrides the file)")
    parser.add_argument(
        "--address", metavar="URL", help="head of a Ray cluster to join, its dashboard: http://HOST:8265"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the services on the cluster of --address running at the end"
    )
    add_log_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs a gateway, an agent and replicas until it is stopped; returns the exit status.

    Raises:
        UsageError: An extra is missing, the configuration is wrong, the port is taken, or no model came up.
    """
    import importlib.util

    if importlib.util.find_spec("ray") is None and args.address is None:
        raise UsageError(_NEEDS.format(name="ray"))
    if args.keep and args.address is None:
        raise UsageError(
            "--keep is for the services of a cluster that --address names: a local Ray ends with this command."
        )
    if args.address is not None and not args.address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {args.address}: is no address of a head's dashboard. Write http://HOST:8265, not Ray's own port."
        )
    try:
        from sixfold.scaling.up.service import run_up
    except ModuleNotFoundError as missing:
        raise UsageError(_NEEDS.format(name=missing.name)) from missing
    flags: dict[str, JsonValue] = {"host": args.host, "port": args.port}
    return run_up(
        args.config,
        flags=flags,
        address=args.address,
        keep=args.keep,
        log_level=args.log_level,
        log_format=args.log_format,
    )


COMMAND = Command(
    name="up",
    summary="Serve the models of a configuration file with many replicas on Ray: gateway, agent and all.",
    configure=configure,
    run=run,
)
"""For the plugin."""
