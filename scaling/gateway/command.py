"""``sixfold gateway``: from a configuration file to a gateway that listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.cli.serve import configure_logging
from sixfold.core.serving.lifecycle import Listening, run
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings, load_gateway_config
from sixfold.scaling.registry import SqliteRegistry


def run_gateway(config: Path, *, flags: Mapping[str, JsonValue], log_level: str) -> int:
    """Runs the gateway until it is stopped; returns the exit status.

    Raises:
        UsageError: The settings are wrong, or the address can't be listened on.
    """
    settings = load_gateway_config(config, flags=flags)
    configure_logging(log_level)
    return run(
        build_gateway(settings), on_listening=lambda listening: print(_greeting(listening, settings), flush=True)
    )


def build_gateway(settings: GatewaySettings) -> Gateway:
    """The gateway of some settings, with the registry that they name.

    Raises:
        ConfigError: The registry can't be opened.
    """
    registry = None if settings.registry is None else SqliteRegistry(settings.registry.path)
    return Gateway(settings, registry=registry)


def _greeting(listening: Listening, settings: GatewaySettings) -> str:
    named = f"{len(settings.replicas)} servers" if settings.replicas else "the servers of the registry"
    return f"The gateway to {named} ({settings.routing.policy}) is on {listening.url}"
